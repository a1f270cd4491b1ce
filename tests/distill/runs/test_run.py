"""What train returned, its folder and the networks themselves go wherever a run is asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill import UserError, train
from losses import MeanVariance
from samplers import CachedDraws, FunctionSampler
from students import UNet

QUICK = dict(steps=2, refine_steps=1, batch_size=2, micro_batch=2, patch_size=16, device="cpu")


@pytest.fixture
def run(noisy, tiny_hdn, tmp_path) -> distill.Run:
    student = UNet(depth=2, filters=4, out_channels=2)
    return train(noisy, tiny_hdn, student, MeanVariance(), tmp_path / "run", **QUICK)


def test_it_is_a_path(run, tmp_path):
    assert os.fspath(run) == str(run) == str(tmp_path / "run") and Path(run) == run.path


def test_everything_takes_it(run, noisy, tmp_path):
    cost = dict(draws=[1], device="cpu")
    clean = noisy.mean(0)
    assert distill.load_sampler(run) is distill.load_sampler(run.sampler) is run.sampler
    assert distill.load_denoiser(run) is distill.load_denoiser(run.denoiser) is run.denoiser
    assert distill.evaluate(run, noisy, clean, **cost) and distill.evaluate_all(
        [run, run], [(noisy, clean)], tmp_path / "table", **cost
    )
    before = torch.cat([p.detach().flatten() for p in run.sampler.parameters()])
    distill.training_cost(run, noisy, repeats=1, device="cpu")
    assert before.equal(torch.cat([p.detach().flatten() for p in run.sampler.parameters()]))
    assert isinstance(distill.cache_draws(run, noisy, tmp_path / "draws", draws=2), CachedDraws)
    distill.calibrate(run, noisy, clean)
    assert run.denoiser.spread == distill.load_denoiser(run.path).spread != 1
    assert distill.report(run) == tmp_path / "run" / "report.html" and distill.report([run, run.path])


def test_predictions_are_the_same_from_each(run, noisy):
    expected = distill.predict(run.path, noisy)
    for other in (run, run.denoiser):
        assert np.array_equal(distill.predict(other, noisy), expected)

    def of_draws(source):
        torch.manual_seed(0)
        return distill.predict(source, noisy, draws=2)

    assert np.array_equal(of_draws(run), of_draws(run.sampler))


def test_a_sampler_that_no_folder_can_rebuild(noisy, tiny_unet, tmp_path):
    sampler = FunctionSampler(lambda noisy: noisy + torch.randn_like(noisy))
    run = train(noisy, sampler, tiny_unet, out=tmp_path, **QUICK)
    assert distill.predict(run, noisy, draws=2).shape == noisy.shape
    with pytest.raises(UserError, match="no sampler that can be rebuilt"):
        distill.predict(run.path, noisy, draws=2)


def test_export_takes_a_student_in_hand(run, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="out: needed"):
        distill.export(run.denoiser)
    file = distill.export(run.denoiser, tmp_path / "student.pt2", format="torch-export")
    assert file.exists() and all(p.requires_grad for p in run.denoiser.parameters())


def test_the_wrong_network_is_named(run, noisy):
    with pytest.raises(UserError, match="HDN: contains no student; pass the result of train"):
        distill.predict(run.sampler, noisy)
    with pytest.raises(UserError, match="DirectDenoiser: contains no sampler"):
        distill.predict(run.denoiser, noisy, draws=3)
