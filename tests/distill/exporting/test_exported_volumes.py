"""Students of volumes in files that other programs open."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from distill import DirectDenoiser, export, predict
from distill.__main__ import main
from distill.exporting import graph
from distill.prediction import backends
from distill.runs import checkpoint
from losses import L2, Loss, Quantiles
from students import LightUNet, UNet

SIZES = [(1, 1, 1, 1), (2, 3, 7, 13), (1, 5, 17, 2), (1, 8, 8, 8), (1, 9, 24, 16)]  # batch, Z, Y, X


def denoiser_of(backbone: nn.Module, loss: Loss) -> DirectDenoiser:
    denoiser = DirectDenoiser(backbone, loss).eval().requires_grad_(False)
    denoiser.prepare(torch.full((1, 1, 1, 1), 700.0), torch.full((1, 1, 1, 1), 90.0))
    return denoiser.to(memory_format=torch.contiguous_format)


def light() -> DirectDenoiser:
    return denoiser_of(LightUNet(dims=3, width=8, depth=2), L2())


def unet() -> DirectDenoiser:
    return denoiser_of(UNet(1, 3, dims=3, depth=2, filters=2), Quantiles())


def volume(batch: int, *size: int) -> Tensor:
    return 700 + 90 * torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def assert_same(answer: backends.Answer, denoiser: DirectDenoiser) -> None:
    for size in SIZES:
        found, expected = answer(volume(*size)), denoiser.maps(volume(*size))
        for name, image in expected.items():
            torch.testing.assert_close(found[name], image, rtol=0, atol=1e-4 * 90)


@pytest.mark.parametrize("made", [light, unet])
def test_torchscript_takes_volumes_of_any_size(made, tmp_path):
    denoiser = made()
    graph.save_torchscript(denoiser, tmp_path / "student.pt")
    assert_same(backends.open_torchscript(tmp_path / "student.pt", denoiser.loss.outputs), denoiser)


@pytest.mark.slow
def test_a_program_takes_volumes_of_any_size(tmp_path):
    denoiser = light()
    path = export(denoiser, tmp_path / "p.pt2", format="torch-export")
    assert_same(torch.export.load(path).module(), denoiser)


@pytest.mark.slow
def test_onnx_has_every_map_of_volumes_of_any_size(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    denoiser = unet()
    assert_same(backends.open_onnx(export(denoiser, tmp_path / "p.onnx")), denoiser)


@pytest.mark.slow
def test_a_package_denoises_a_volume_as_its_run_does(tmp_path, monkeypatch):
    core = pytest.importorskip("bioimageio.core")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    checkpoint.save_denoiser(tmp_path / "student.safetensors", light())
    package = export(tmp_path, format="bioimageio", license="MIT")
    noisy = volume(1, 6, 33, 42)
    tifffile.imwrite("noisy.tif", noisy[0, 0].numpy(), imagej=True, metadata={"axes": "ZYX"})
    expected = predict(tmp_path, "noisy.tif", device="cpu", precision="fp32")

    model = core.load_model_description(package)
    for tensor in (*model.inputs, *model.outputs):
        assert [str(axis.id) for axis in tensor.axes] == ["batch", "channel", "z", "y", "x"]
    for weights in ("onnx", "torchscript"):
        runner = core.create_prediction_pipeline(model, weight_format=weights)
        found = core.predict(model=runner, inputs={"noisy": noisy.numpy()}).members
        np.testing.assert_allclose(found["mean"].data.to_numpy()[0, 0], expected, rtol=0, atol=1e-4 * 90)
    exact = ["--device", "cpu", "--precision", "fp32"]
    assert main(["predict", package.name, "noisy.tif", "--out", "clean.tif", *exact]) == 0
    np.testing.assert_array_equal(tifffile.imread(Path("clean.tif")), expected)
