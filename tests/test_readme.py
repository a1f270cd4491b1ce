"""Every command of the README runs, in order, on tiny images and for a step; every file it names exists."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from distill import specimen
from distill.__main__ import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (distill .*)$", README, re.MULTILINE)
TINY = ["--steps", "1", "--refine_steps", "1", "--batch_size", "2", "--patch_size", "32"]


@pytest.mark.slow
def test_commands(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for seed, name in enumerate(("", "other_")):
        cells = specimen(3, 64, seed=seed)
        tifffile.imwrite(f"{name}noisy.tif", cells.noisy, metadata={"axes": "TYX"})
        tifffile.imwrite(f"{name}clean.tif", cells.clean, metadata={"axes": "TYX"})
    dark = np.random.default_rng(0).normal(100, 5, (4, 64, 64)).astype(np.float32)
    tifffile.imwrite("dark.tif", dark, metadata={"axes": "TYX"})
    for code in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", README, re.DOTALL):
        Path(code[1]).write_text(code[0])
        monkeypatch.delitem(sys.modules, code[1].removesuffix(".py"), raising=False)  # another test's
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += TINY
            vae = {"HDN", "StructuredNoiseVAE", "JointNoiseVAE"} & set(arguments)
            arguments += ["--sampler.filters", "8", "--sampler.blocks", "1"] if vae else []
        arguments = [{"100": "3", "10": "2"}.get(each, each) for each in arguments]
        if arguments[:2] == ["noise-model", "fit"]:
            arguments += ["--steps", "5"]
        assert main(arguments) == 0, f"{command}: {capsys.readouterr().err[-500:]}"
    assert {"denoised_q.tif", "denoised_q_q05.tif"} <= {path.name for path in tmp_path.glob("*.tif")}


@pytest.mark.parametrize("page", [Path("README.md"), *(p.relative_to(ROOT) for p in sorted(ROOT.glob("docs/*.md")))])
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text()
    links = [(ROOT / page).parent / name for name in re.findall(r"\]\(([\w/.-]+)\)", text)]
    scripts = [ROOT / name for name in re.findall(r"((?:recipes|benchmarks)/\w+\.py)", text)]
    assert links + scripts
    assert not [path for path in links + scripts if not path.exists()]
