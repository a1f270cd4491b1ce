"""Where a stopped, a longer or an older run resumes, and training from another run's weights."""

import json
import threading

import numpy as np
import pytest
import torch

from distill import UserError, load_denoiser, load_sampler, train
from distill.plots.curves import training_curves
from distill.runs.describe import describe_run
from distill.runs.tensors import load, save
from distill.training.resume import stored_settings
from losses import L2, Quantiles
from samplers import HDN, FunctionSampler, GaussianNoise
from students import UNet

QUICK = dict(batch_size=4, micro_batch=2, patch_size=16, validate_every=3, device="cpu", precision="fp32")


def networks(seed: int = 0, width: int = 4):
    torch.manual_seed(seed)
    hdn = HDN(GaussianNoise(10.0), levels=2, latents=2, filters=width, blocks=1, patch_size=16)
    return hdn, UNet(depth=2, filters=width)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_more_refinement_continues_the_run(noisy, tmp_path):
    first = train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=3, **QUICK)
    longer = train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=9, **QUICK)
    assert weights(longer.sampler).equal(weights(first.sampler))
    assert not weights(longer.denoiser).equal(weights(first.denoiser))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 10, 12]
    assert 0 < rows(tmp_path)[2]["lr"] < 1e-3  # the cosine of 12 steps, where that of 6 had ended at 0


def test_more_steps_co_train_on_and_refine_again(noisy, tmp_path):
    first = train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=3, **QUICK)
    longer = train(noisy, *networks(), out=tmp_path, steps=6, refine_steps=3, **QUICK)
    assert not weights(longer.sampler).equal(weights(first.sampler))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9]
    assert ["sampler_loss" in row for row in rows(tmp_path)] == [True, True, False]


def test_a_longer_run_is_the_same_whenever_it_was_made_longer(noisy, tmp_path):
    """With a rate that does not depend on the length, a continued run equals an undisturbed one."""
    settings = QUICK | dict(schedule="plateau", ema=0.5)
    train(noisy, *networks(), out=tmp_path / "parts", steps=3, refine_steps=3, **settings)
    parts = train(noisy, *networks(), out=tmp_path / "parts", steps=3, refine_steps=6, **settings)
    whole = train(noisy, *networks(), out=tmp_path / "whole", steps=3, refine_steps=6, **settings)
    assert weights(parts.denoiser).equal(weights(whole.denoiser))


def test_fewer_steps_than_the_run_has_are_refused(noisy, tmp_path):
    train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=3, **QUICK)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    for fewer in (dict(steps=3, refine_steps=2), dict(steps=2, refine_steps=9)):
        with pytest.raises(UserError, match=r"holds a run at step 6 of 3 \+ 3"):
            train(noisy, *networks(), out=tmp_path, **fewer, **QUICK)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_what_does_not_change_the_result_may_change_and_what_is_new_is_not_asked(noisy, tmp_path):
    """A run of an older version lacks settings that train has got since."""
    train(noisy, *networks(), out=tmp_path, steps=2, refine_steps=0, **QUICK)
    tensors, header = load(tmp_path / "checkpoint.safetensors")
    del header["settings"]["ema"], header["settings"]["axes"]
    save(tmp_path / "checkpoint.safetensors", tensors, header)
    train(noisy, *networks(), out=tmp_path, steps=4, refine_steps=0, **(QUICK | dict(validate_every=1)))
    assert rows(tmp_path)[-1]["step"] == 4


def test_a_torn_last_line_of_the_metrics_does_not_block(noisy, tmp_path):
    train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=0, **QUICK)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "stud')
    assert "step 3, " in describe_run(tmp_path).splitlines()[-1]
    assert training_curves(tmp_path / "metrics.jsonl") == []  # one point is no curve
    train(noisy, *networks(), out=tmp_path, steps=6, refine_steps=0, **QUICK)
    assert len(training_curves(tmp_path / "metrics.jsonl")) == 3
    assert [row["step"] for row in rows(tmp_path)] == [3, 6]


def test_killed_before_the_first_checkpoint_no_row_is_doubled(noisy, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=0, **QUICK)
    assert [row["step"] for row in rows(tmp_path)] == [3]


def test_a_finished_run_without_its_checkpoint_is_not_trained_over(noisy, tmp_path):
    train(noisy, *networks(), out=tmp_path, steps=1, refine_steps=0, **QUICK)
    (tmp_path / "checkpoint.safetensors").unlink()
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with pytest.raises(
        UserError, match=r"holds student.safetensors and sampler.safetensors of a run, but no"
    ):
        train(noisy, *networks(), out=tmp_path, steps=1, refine_steps=0, **QUICK)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


def test_a_second_training_in_the_same_folder_is_refused(noisy, tmp_path):
    messages = []

    def second(row):
        with pytest.raises(UserError) as error:
            train(noisy, *networks(), out=tmp_path, steps=1, refine_steps=0, **QUICK)
        messages.append(str(error.value))

    train(noisy, *networks(), out=tmp_path, steps=3, refine_steps=0, on_log=second, **QUICK)
    assert len(messages) == 1 and "another distill train is running there" in messages[0]
    assert [row["step"] for row in rows(tmp_path)] == [3]


def test_another_run_gives_its_weights_but_not_its_images_statistics(noisy, tmp_path):
    first = train(noisy, *networks(), out=tmp_path / "a", steps=3, refine_steps=0, **QUICK)
    hdn, unet = networks(seed=1)
    hdn.noise_model = None  # to be estimated from the new images
    brighter = 3 * noisy + np.random.default_rng(0).normal(0, 5, noisy.shape).astype(np.float32)
    run = train(brighter, hdn, unet, out=tmp_path / "b", init=tmp_path / "a", steps=1, refine_steps=0,
                lr=0.0, ema=0.0, **QUICK)  # fmt: skip
    assert weights(run.denoiser).equal(weights(load_denoiser(tmp_path / "a")))
    assert weights(run.sampler).equal(weights(load_sampler(tmp_path / "a")))
    assert not run.denoiser.mean.equal(first.denoiser.mean) and run.sampler.noise_model.gain is not None


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(noisy, tmp_path):
    train(noisy, *networks(), out=tmp_path / "a", steps=1, refine_steps=0, **QUICK)
    for sampler, student, loss in [
        (*networks(width=8), L2()),
        (networks()[0], UNet(out_channels=3, depth=2, filters=4), Quantiles()),
    ]:
        with pytest.raises(UserError, match=r"has another (HDN|UNet)"):
            train(noisy, sampler, student, loss, tmp_path / "b", init=tmp_path / "a", **QUICK)
    assert not (tmp_path / "b").exists()


def test_a_frozen_sampler_runs_on_too(noisy, tmp_path):
    identity = FunctionSampler(lambda x: x)
    train(noisy, identity, networks()[1], out=tmp_path, steps=2, refine_steps=1, **QUICK)
    train(noisy, identity, networks()[1], out=tmp_path, steps=5, refine_steps=1, **QUICK)
    assert rows(tmp_path)[-1]["step"] == 6


def test_a_log_stops_a_training_in_any_thread(noisy, tmp_path):
    options = {"steps": 11, "refine_steps": 0} | QUICK | {"validate_every": 11}
    whole, stopped = train(noisy, *networks(), out=tmp_path / "whole", **options), []

    def stop(row):
        raise KeyboardInterrupt

    def work():
        try:
            train(noisy, *networks(), out=tmp_path / "parts", on_log=stop, **options)
        except KeyboardInterrupt:
            stopped.append(stored_settings(tmp_path / "parts")["steps"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [11] and [row["step"] for row in rows(tmp_path / "parts")] == [10]
    resumed = train(noisy, *networks(), out=tmp_path / "parts", **options)
    assert weights(resumed.denoiser).equal(weights(whole.denoiser))
    assert [row["step"] for row in rows(tmp_path / "parts")] == [10, 11]
