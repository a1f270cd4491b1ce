"""Every command of the README and of docs/ is one that distill takes; those of the guides run, in order, on
tiny images and for a step; every file that a page names exists, and its Python imports what there is."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from distill import specimen
from distill.__main__ import main

ROOT = Path(__file__).parent.parent
OF_CLUSTERS = {"dask_jobqueue"}  # that no test needs
PAGES = [Path("README.md"), *sorted(p.relative_to(ROOT) for p in ROOT.glob("docs/*.md"))]
GUIDES = ["README.md", *(f"docs/{name}.md" for name in ("index", "noise-models", "losses", "your-own",
                                                       "command-line"))]  # fmt: skip
COMMAND = re.compile(r"^ *(?:.* -m )?distill (.*)$", re.MULTILINE)  # started by a launcher or not
TINY = ["--steps", "1", "--refine_steps", "1"]
SMALL = ["--batch_size", "2", "--patch_size", "32"]


def text(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str | Path) -> str:
    """Its indented and fenced blocks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    return "\n".join([*re.findall(r"^    .*$", text(page), re.MULTILINE), *fenced]).replace("\\\n", " ")


def commands(page: str | Path) -> list[list[str]]:
    return [shlex.split(found) for found in COMMAND.findall(code(page))]


def blocks(page: str | Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """With the modules that pages show, by the names in their first lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name, block in ((b.partition("\n")[0], b) for page in PAGES for b in blocks(page)):
        if module := re.fullmatch(r"# (\w+)\.py", name):
            Path(f"{module[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, module[1], raising=False)  # another test's
    return tmp_path


def shortened(command: list[str]) -> list[str]:
    """For a step, or a second."""
    short = {"100": "3", "10": "2", "10min": "1s", "1min": "1s"}
    arguments, timed = [short.get(each, each) for each in command], "--budget" in command
    if command[0] == "train":
        vae = {"HDN", "StructuredNoiseVAE", "JointNoiseVAE"} & set(command)
        sizes = ["--sampler.filters", "8", "--sampler.blocks", "1"] if vae else []
        return arguments + SMALL + sizes + ([] if timed else TINY)
    if command[0] == "denoise":
        return arguments + ([] if timed else ["--budget", "1s"])
    return arguments + (["--steps", "5"] if command[0] == "noise-model" else [])


@pytest.mark.slow
def test_the_commands_of_the_guides_run(folder, capsys):
    pytest.importorskip("timm")
    for seed, name in enumerate(("", "other_")):
        cells = specimen(3, 64, seed=seed)
        tifffile.imwrite(f"{name}noisy.tif", cells.noisy, metadata={"axes": "TYX"})
        tifffile.imwrite(f"{name}clean_truth.tif", cells.clean, metadata={"axes": "TYX"})
    for name in ("other", "movie"):
        tifffile.imwrite(f"{name}.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("stack.tif", np.tile(cells.noisy, (4, 1, 1)), metadata={"axes": "ZYX"})
    tifffile.imwrite("mask.tif", (np.random.default_rng(0).random((64, 64)) > 0.3).astype(np.uint8))
    dark = np.random.default_rng(0).normal(100, 5, (4, 64, 64)).astype(np.float32)
    tifffile.imwrite("dark.tif", dark, metadata={"axes": "TYX"})
    of_a_hub = ("push", "pull")  # for which nobody is logged in here
    found = [
        shortened(command) for page in GUIDES for command in commands(page) if command[0] not in of_a_hub
    ]
    once = [list(command) for command in dict.fromkeys(map(tuple, found))]  # pages repeat each other
    assert len(once) > 25
    for arguments in once:
        assert main(arguments) == 0, f"{arguments}: {capsys.readouterr().err[-500:]}"
    assert {"denoised_q.tif", "denoised_q_q05.tif", "clean.tif"} <= {p.name for p in folder.glob("*.tif")}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_distill_takes_every_command(page, folder, capsys):
    for arguments in commands(page):
        assert main([*arguments, "--print_config"]) == 0, f"{arguments}: {capsys.readouterr().err}"
        assert yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_scripts_that_a_page_names_have_its_options(page):
    for script, options in re.findall(r"((?:recipes|benchmarks)/\w+\.py)([^`\n]*)", text(page)):
        for flag in re.findall(r"--[\w-]+", options):
            assert flag in text(script), f"{page}: {script} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_blocks_import_what_there_is(page, folder):
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module not in OF_CLUSTERS:
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_a_page_names_are_there(page):
    links = [(ROOT / page).parent / name for name in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", text(page))]
    scripts = [ROOT / name for name in re.findall(r"((?:recipes|benchmarks)/\w+\.\w+)", text(page))]
    assert not [path for path in links + scripts if not path.exists()]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w-]+\.md)$", text("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:])


def test_names_of_the_api_page_exist():
    for name in re.findall(r"^::: (.*)$", text("docs/api.md"), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
