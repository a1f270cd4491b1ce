"""Images of other channels, and folders of runs in which something is missing or torn."""

import numpy as np
import pytest

from distill import UserError, cache_draws, calibrate, evaluate, predict, report, train
from distill.runs.describe import describe_run
from losses import MeanVariance
from students import UNet


@pytest.fixture
def run(noisy, tiny_hdn, tmp_path):
    student = UNet(out_channels=2, depth=2, filters=4)
    return train(noisy, tiny_hdn, student, MeanVariance(), tmp_path / "run", steps=1, refine_steps=0,
                 batch_size=2, micro_batch=2, patch_size=16, device="cpu").path  # fmt: skip


def test_images_of_other_channels_are_one_line(run, noisy, tmp_path):
    two = np.stack([noisy, noisy], 1)
    for function in (
        lambda: predict(run, two),
        lambda: evaluate(run, two, two, tmp_path / "new", draws=[1]),
        lambda: calibrate(run, two, two),
        lambda: cache_draws(run, two, tmp_path / "new"),
    ):
        with pytest.raises(UserError, match=r"has 2 channels, but .*run was trained on 1"):
            function()
    assert not (tmp_path / "new").exists()


def test_a_report_and_a_description_of_what_is_there(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "stud')
    (run / "checkpoint.safetensors").unlink()
    assert "Next: evaluate" in report(run).read_text()
    for name in ("metrics.jsonl", "sampler.safetensors"):
        (run / name).unlink()
    assert "none in this folder" in report(run).read_text() and "last" not in describe_run(run)
    (run / "metrics.jsonl").touch()
    assert "last" not in describe_run(run)


@pytest.mark.parametrize("damage", ["evaluation.npz", "evaluation.csv", "calibration.json"])
def test_what_is_damaged_is_named(damage, run, noisy):
    evaluate(run, noisy, noisy.mean(0), draws=[1], frames=1, device="cpu")
    (run / damage).write_bytes(b"torn")
    with pytest.raises(UserError, match=rf"{damage[:8]}.*(damaged|not a readable)"):
        report(run)
