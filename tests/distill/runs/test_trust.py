"""What a model file may have run, read and built: our own classes, and nothing else unless told."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import tifffile
import torch
from torch import nn

import losses
import samplers
import students
from distill import DirectDenoiser, UserError, load_denoiser, load_sampler, train
from distill.__main__ import main
from distill.runs.checkpoint import save_denoiser
from distill.runs.rebuild import describe, files_of, rebuild
from distill.runs.tensors import load, save
from losses import L2
from samplers import HDN, CachedDraws, GaussianNoise
from students import UNet

FOREIGN = """\
import os, pathlib
from torch import nn

pathlib.Path(os.environ["WAS_HERE"]).touch()

class Net(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 1)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder, noisy = tmp_path_factory.mktemp("trained"), torch.randn(4, 48, 40).numpy() * 10 + 200
    sampler = HDN(GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=16)
    train(noisy, sampler, UNet(depth=2, filters=4), L2(), folder / "run", steps=1, refine_steps=0,
          batch_size=2, micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    tifffile.imwrite(folder / "noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A run in the working folder, beside noisy.tif and code that leaves a file when it is imported."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    monkeypatch.setenv("WAS_HERE", str(tmp_path / "was_here"))
    Path("foreign.py").write_text(FOREIGN)
    return Path("run")


def edit(path: Path, **fields) -> None:
    """Other fields in a file's header, with the checksum that belongs to them."""
    tensors, header = load(path)
    save(path, tensors, header | fields)


@pytest.mark.parametrize(
    "command",
    ["predict run noisy.tif --out out.tif", "evaluate run noisy.tif", "calibrate run noisy.tif noisy.tif",
     "cache run noisy.tif --out draws", "export run --format torch-export", "info run", "report run",
     "table1 --run run --data noisy.tif noisy.tif",
     "train noisy.tif --init run --out next --steps 1 --patch_size 16"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["foreign.Net", "os.system", "lpips.LPIPS", "samplers.testing.torch"])
def test_no_command_imports_what_a_file_names(command, name, run, capsys):
    hostile = {"class": name, "arguments": {}}
    edit(run / "student.safetensors", backbone=hostile)
    edit(run / "sampler.safetensors", sampler=hostile)
    code = main(command.split())
    assert not Path("was_here").exists()
    if command.split()[0] not in ("info", "report"):  # they build nothing
        assert code == 2 and f"--trust {name.partition('.')[0]}" in capsys.readouterr().err


def test_a_class_deep_in_the_arguments_is_refused_before_any_import(run):
    inner = {"class": "losses.weighted.WeightedSum", "arguments": {"losses": [describe(L2()), "L1"]}}
    inner["arguments"]["losses"][1] = {"class": "foreign.Net", "arguments": {}}
    edit(run / "student.safetensors", loss=inner)
    with pytest.raises(UserError, match=r"student\.safetensors: names the class foreign\.Net"):
        load_denoiser(run)
    assert not Path("was_here").exists()


def test_trusted_code_is_run(run):
    weights = {f"backbone.{k}": v for k, v in nn.Conv2d(1, 1, 1).state_dict().items()}
    tensors, header = load(run / "student.safetensors")
    tensors = {k: v for k, v in tensors.items() if not k.startswith("backbone.")} | weights
    save(
        run / "student.safetensors", tensors, header | {"backbone": {"class": "foreign.Net", "arguments": {}}}
    )
    command = ["predict", "run", "noisy.tif", "--out", "out.tif", "--device", "cpu"]
    assert main([*command, "--trust", "foreigners"]) == 2 and not Path("was_here").exists()
    assert main([*command, "--trust", "foreign"]) == 0 and Path("was_here").exists()
    assert type(load_denoiser(run, trust=["foreign"]).backbone).__name__ == "Net"
    with pytest.raises(UserError, match="trust"):
        load_denoiser(run)


def test_trusted_names_that_are_no_networks_are_not_called():
    for name in ("os.system", "pathlib.Path"):
        with pytest.raises(UserError, match=r"not an nn\.Module"):
            rebuild({"class": name, "arguments": {"x": "echo"}}, ["os", "pathlib"])
    with pytest.raises(UserError, match="cannot be imported"):
        rebuild({"class": "no_such_package.Net", "arguments": {}}, "no_such_package")


def test_the_working_folder_is_searched_for_code_only_where_the_user_names_some(run):
    main(["predict", "run", "noisy.tif", "--out", "out.tif"])
    main(["train", "noisy.tif", "--sampler", "HDN", "--steps", "0", "--out", "next"])
    assert "" not in sys.path
    main(["train", "noisy.tif", "--student", "foreign.Net", "--patience", "x", "--out", "next"])
    assert "" in sys.path


def test_files_and_urls_are_not_taken_from_a_header(tmp_path, monkeypatch):
    GaussianNoise(3.0).write(tmp_path / "noise.npz")
    network = HDN(levels=2, latents=2, filters=4, blocks=1)
    described = describe(network)
    described["arguments"]["noise_model"] = str(tmp_path / "noise.npz")
    assert rebuild(described).noise_model is None
    for loss in (losses.LPIPS(weights="a.pth"), losses.Features(weights="b.pth")):
        assert rebuild(describe(loss)).weights is None
    cached = rebuild({"class": "samplers.cached.CachedDraws", "arguments": {"path": str(tmp_path)}})
    assert isinstance(cached, CachedDraws) and not cached.path


@pytest.mark.parametrize("weights", ["imagenet", "weights.pth"])
def test_an_encoder_is_rebuilt_without_its_first_weights(weights, tmp_path, monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.chdir(tmp_path)
    torch.save({"evil": torch.zeros(1)}, "weights.pth")
    student = students.EncoderDecoder(encoder="tu-resnet18", depth=3)
    described = describe(student)
    described["arguments"]["weights"] = weights
    monkeypatch.setattr(students.smp, "_read", lambda *_: pytest.fail("reads a file"))
    given = {}
    build = smp.Unet
    monkeypatch.setattr(smp, "Unet", lambda *a, **options: given.update(options) or build(*a, **options))
    rebuild(described).load_state_dict(student.state_dict())
    assert given["encoder_weights"] is None


def test_every_text_that_our_classes_take_is_a_choice_or_listed_as_a_file():
    choices = {"net", "backbone", "architecture", "encoder", "out_names"}  # or names that are only shown
    for package in (samplers, students, losses):
        for name in package.__all__:
            kind = getattr(package, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module) and not inspect.isabstract(kind):
                parameters = inspect.signature(kind, eval_str=True).parameters.values()
                texts = {p.name for p in parameters if str in (p.annotation, *get_args(p.annotation))}
                assert texts <= choices | files_of(kind), kind


@pytest.mark.parametrize(
    "header",
    [{}, {"backbone": 3}, {"backbone": {"class": 3, "arguments": {}}}, {"channels": -1}, {"channels": "1"},
     {"channels": True},
     {"backbone": {"class": "students.unet.UNet", "arguments": []}}, {"loss": None},
     {"backbone": {"class": "students.unet.UNet", "arguments": {"depth": "x"}}},
     {"backbone": {"class": "students.unet.UNet", "arguments": {"depth": -3, "filters": 0}}},
     {"backbone": {"class": "students.unet.UNet", "arguments": {"no_such": 1}}},
     {"backbone": {"class": "students.unet.UNet", "arguments": {"filters": 10**15}}},
     {"backbone": {"class": "students.unet.UNet", "arguments": {"filters": 10**4}}},
     {"backbone": {"class": "students.light.LightUNet", "arguments": {"depth": 10**9, "growth": 1}}},
     {"backbone": {"class": "students.light.LightUNet", "arguments": {"depth": 10**5, "growth": 1}}},
     {"loss": {"class": "students.unet.UNet", "arguments": {}}}, {"channels": 10**15},
     {"loss": {"class": "losses.weighted.WeightedSum", "arguments": {"losses": [[[[]]]]}}}],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_one_line(header, tmp_path):
    path = tmp_path / "student.safetensors"
    save_denoiser(path, DirectDenoiser(UNet(depth=1, filters=2), L2()))
    tensors, sound = load(path)
    save(path, tensors, sound | header if header else {})
    with pytest.raises(UserError, match=r"student\.safetensors"):
        load_denoiser(tmp_path)


def test_headers_that_are_nested_without_end_are_one_line(tmp_path):
    for text in ("[" * 10**5, "{", "[1]", '"x"', "9" * 10**4, json.dumps({"a": [[]]})[:-1]):
        path = tmp_path / "sampler.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"header": text, "sha256": "0"})
        with pytest.raises(UserError, match="damaged"):
            load_sampler(path)


def test_a_cache_that_a_header_named_has_no_draws():
    for use in (CachedDraws("").training_images, CachedDraws("").sample):
        with pytest.raises(ValueError, match="has no path"):
            use(torch.zeros(1, 1, 8, 8))
