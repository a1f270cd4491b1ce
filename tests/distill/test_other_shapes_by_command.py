"""`distill train` gives students the channels and the size that a sampler declares."""

import tifffile

from distill.__main__ import main

SAMPLER = """\
import torch
from samplers import PosteriorSampler

class Parts(PosteriorSampler):
    out_channels, scale, out_names = 2, (1, 2), ("bright", "dark")

    def sample(self, noisy, n=1):
        large = noisy.repeat_interleave(2, dim=3)
        parts = torch.cat([2 * large, large / 2], dim=1)
        return parts + torch.randn(n, *parts.shape)
"""
QUICK = ["--steps", "0", "--refine_steps", "1", "--batch_size", "2", "--micro_batch", "2", "--patch_size",
         "16", "--device", "cpu"]  # fmt: skip


def test_a_student_of_the_right_sizes(noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unmixing_plugin.py").write_text(SAMPLER)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    train = ["train", "noisy.tif", "--sampler", "unmixing_plugin.Parts", "--out", "run", *QUICK]
    assert main(train) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "pass --student LightUNet, or UNet" in told[0]
    small = ["--student", "LightUNet", "--student.width", "4", "--student.depth", "1"]
    assert main([*train, *small, "--loss", "MeanVariance"]) == 0
    assert main(["predict", "run", "noisy.tif", "--out", "out.tif"]) == 0
    assert tifffile.imread("out.tif").shape == tifffile.imread("out_std.tif").shape == (4, 2, 48, 80)
    capsys.readouterr()
    assert main(["info", "run"]) == 0
    out = capsys.readouterr().out
    assert "output    channels 2 (bright, dark), scale [1, 2] (Y, X)" in out and "out_channels=4" in out
