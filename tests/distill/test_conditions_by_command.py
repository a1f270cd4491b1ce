"""`--conditions` of the commands."""

import numpy as np
import pytest
import tifffile

from distill.__main__ import main

MINE = """
import torch
from samplers import PosteriorSampler

class Blank(PosteriorSampler):
    conditions = 1

    def sample(self, noisy, n=1):
        images, mask = self.split(noisy)
        return torch.stack([images * mask + torch.randn_like(images) for _ in range(n)])
"""
QUICK = ["--student", "LightUNet", "--student.width", "4", "--student.depth", "1", "--steps", "0",
         "--refine_steps", "1", "--batch_size", "2", "--micro_batch", "2", "--patch_size", "16",
         "--device", "cpu"]  # fmt: skip


@pytest.fixture
def folder(noisy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "blanking.py").write_text(MINE)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite("mask.tif", np.ones(noisy.shape[1:], np.uint8))
    return tmp_path


def test_trained_and_used(folder, noisy, capsys):
    train = ["train", "noisy.tif", "--sampler", "blanking.Blank", "--out", "run", *QUICK]
    told = ["--conditions", "mask.tif", "--trust", "blanking"]

    def refused(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "conditions: got none, but Blank needs 1, such as" in refused(train)
    assert main([*train, *told]) == 0
    assert "distill predict run noisy.tif --conditions mask.tif --out" in capsys.readouterr().out
    assert "but run needs 1, such as" in refused(["predict", "run", "noisy.tif", "--out", "out.tif"])
    assert "run needs 1" in refused(["denoise", "noisy.tif", "--out", "out.tif", "--with", "run", *told[2:]])
    assert main(["predict", "run", "noisy.tif", "--out", "out.tif", *told]) == 0
    assert tifffile.imread("out.tif").shape == noisy.shape
    assert main(["evaluate", "run", "noisy.tif", "--draws", "1", *told]) == 0
    assert main(["cache", "run", "noisy.tif", "--out", "draws", "--draws", "1", *told]) == 0
    assert "distill train noisy.tif --conditions mask.tif --sampler CachedDraws" in capsys.readouterr().out
    assert main(["info", "run"]) == 0
    out = capsys.readouterr().out
    assert "in_channels=2" in out and "beside    the image it sees 1 " in out
