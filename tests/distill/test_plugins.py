"""Samplers of others: from an installed package, and from a file in the working folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

SAMPLER = """\
import torch
from samplers import PosteriorSampler

class MySampler(PosteriorSampler):
    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def sample(self, noisy, n=1):
        return torch.stack([noisy + self.strength * torch.randn_like(noisy) for _ in range(n)])
"""
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "thirdparty"
version = "1.0"
[tool.setuptools]
py-modules = ["thirdparty"]
"""
QUICK = [
    "--student", "UNet", "--student.depth", "2", "--student.filters", "4", "--steps", "2",
    "--refine_steps", "0", "--batch_size", "2", "--micro_batch", "2", "--patch_size", "16",
    "--device", "cpu",
]  # fmt: skip


def python(*arguments: str, site: str = "") -> str:
    path = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def folder(noisy, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    return tmp_path


@pytest.mark.slow
def test_a_sampler_of_an_installed_package(folder):
    (folder / "source").mkdir()
    (folder / "source" / "thirdparty.py").write_text(SAMPLER)
    (folder / "source" / "pyproject.toml").write_text(PROJECT)
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    python("pip", "install", *offline, "--target", "site", "./source")
    chosen = ["--sampler", "thirdparty.MySampler", "--sampler.strength", "0.5"]
    python("distill", "train", "noisy.tif", *chosen, "--out", "run", *QUICK, site="site")
    assert "MySampler(strength=0.5)" in python("distill", "info", "run", site="site")


@pytest.mark.slow
def test_a_sampler_in_a_file_of_the_working_folder(folder):
    (folder / "mine.py").write_text(SAMPLER)
    chosen = ["--sampler=mine.MySampler", "--sampler.strength=0.5"]
    python("distill", "train", "noisy.tif", *chosen, "--out", "run", *QUICK)
    python("distill", "predict", "run", "noisy.tif", "--out", "clean.tif", "--draws", "2", "--trust", "mine")
    assert tifffile.imread("clean.tif").shape == (4, 48, 40)
