"""`distill train --context`."""

import tifffile

from distill.__main__ import main

QUICK = [
    "--sampler", "HDN", "--sampler.levels", "2", "--sampler.latents", "2", "--sampler.filters", "4",
    "--sampler.blocks", "1", "--student", "LightUNet", "--student.width", "4", "--student.depth", "1",
    "--steps", "1", "--refine_steps", "1", "--batch_size", "2", "--micro_batch", "2",
    "--patch_size", "16", "--device", "cpu",
]  # fmt: skip


def test_networks_of_the_right_sizes(noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    assert main(["train", "noisy.tif", "--context", "T1", "--out", "run"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "pass --sampler HDN (or DivNoising) and --student LightUNet" in told[0]
    assert main(["train", "noisy.tif", "--context", "t1", "--out", "run", *QUICK]) == 0
    assert main(["predict", "run", "noisy.tif", "--out", "out.tif"]) == 0
    assert tifffile.imread("out.tif").shape == (4, 48, 40)
    capsys.readouterr()
    assert main(["info", "run"]) == 0
    out = capsys.readouterr().out
    assert "in_channels=3" in out and "context   T1" in out
