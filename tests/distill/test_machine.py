"""A full disk and a folder without rights are found before the work, and leave nothing."""

import os
import shutil
import subprocess
from contextlib import suppress

import numpy as np
import pytest
import torch

from distill import (
    UserError,
    cache_draws,
    calibrate,
    evaluate,
    export,
    predict,
    report,
    train,
    training_cost,
)  # fmt: skip
from distill.files import check_file, check_folder
from distill.noise_fitting.fit import fit_noise_model
from losses import MeanVariance
from samplers import FunctionSampler
from students import UNet

QUICK = dict(steps=1, refine_steps=0, batch_size=2, micro_batch=2, patch_size=16, device="cpu")


@pytest.fixture(params=["full", "read-only"])
def disk(request, tmp_path, noisy, tiny_hdn):
    """A folder with a run on it, on a disk that takes no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distill.training.checks.space", lambda *_: 0)
            patch.setattr("distill.training.engine.space", lambda *_: 0)
            student = UNet(out_channels=2, depth=2, filters=2)
            train(noisy, tiny_hdn, student, MeanVariance(), folder / "run", **QUICK)
        if request.param == "full":
            with open(folder / "filler", "wb", 0) as file, suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_every_writing_function_says_so_before_the_work(disk, noisy, tiny_hdn, monkeypatch):
    run, clean = disk / "run", noisy.mean(0)

    def forbidden(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr("distill.prediction.tiles.in_tiles", forbidden)
    monkeypatch.setattr("distill.evaluation.evaluate.compare", forbidden)
    monkeypatch.setattr("distill.exporting.graph.program", forbidden)
    monkeypatch.setattr("distill.training.engine.check_networks", forbidden)
    before = sorted(disk.rglob("*"))
    for function, *arguments in (
        (train, noisy, tiny_hdn, UNet(depth=2, filters=2), None, disk / "new"),
        (predict, run, noisy, disk / "new.tif"),
        (evaluate, run, noisy, clean),
        (evaluate, run, noisy, clean, disk / "new"),
        (report, run),
        (calibrate, run, noisy, clean),
        (export, run),
        (cache_draws, run, noisy, disk / "new"),
        (fit_noise_model, noisy, disk / "new.npz"),
        (training_cost, run, noisy),
    ):
        with pytest.raises(UserError, match=r"cannot be written|MB left"):
            function(*arguments)
        assert sorted(disk.rglob("*")) == before


def test_a_cache_too_large_for_its_disk_leaves_nothing(tmp_path, noisy, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)  # not on macOS and Windows
    with pytest.raises(UserError, match="No space left"):
        cache_draws(FunctionSampler(lambda noisy: noisy), noisy, tmp_path / "new", draws=2, device="cpu")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="MB left"):
        check_folder(tmp_path / "other", 1e18)


def test_what_stands_where_something_else_is_wanted(tmp_path):
    (tmp_path / "file.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "link.tif").symlink_to("file.tif")
    wrong = {"folder.tif": "exists already", "link.tif": "symbolic link", "x": "ends in .tif"}
    wrong |= {"file.tif/a.tif": "does not exist", f"{'x' * 255}.tif": "too long"}
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            check_file(tmp_path / name, (".tif",), overwrite=True)
    for name, message in {"file.tif": "is a file", "file.tif/a": "is a file", "x" * 300: "too long"}.items():
        with pytest.raises(UserError, match=message):
            check_folder(tmp_path / name)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_means_smaller_tiles_and_in_the_end_one_line(error, tmp_path, caplog):
    most = 128 * 128

    def sample(noisy):
        if noisy.shape[-1] * noisy.shape[-2] > most:
            raise error
        return noisy * 2

    noisy = np.random.default_rng(0).normal(100, 10, (2, 300, 260)).astype(np.float32)
    options = dict(draws=1, halo=0, device="cpu")
    np.testing.assert_array_equal(predict(FunctionSampler(sample), noisy, **options), 2 * noisy)
    assert [record.args for record in caplog.records] == [(128,)]  # once for both frames
    most = 63
    with pytest.raises(UserError, match="out of memory with tiles of 64 pixels"):
        predict(FunctionSampler(sample), noisy, tmp_path / "new.tif", **options)
    assert not [*tmp_path.iterdir()]
