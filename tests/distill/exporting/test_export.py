import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import DirectDenoiser, UserError, export, load_denoiser
from distill.__main__ import main
from distill.exporting import graph
from distill.exporting.export import _write_torchscript
from distill.prediction import backends
from distill.runs import checkpoint
from losses import L2, EnergyScore, Loss, MeanVariance, Quantiles
from students import EncoderDecoder, LightUNet, NoiseConditioned, StabilizedUNet, UNet

SIZES = [(1, 1, 1), (2, 7, 13), (1, 3, 31), (3, 16, 24), (1, 45, 29)]


def run_of(folder: Path, backbone: nn.Module, loss: Loss, channels: int = 1) -> DirectDenoiser:
    """A run whose calibration has found intervals 1.3 times too narrow."""
    denoiser = DirectDenoiser(backbone, loss, channels)
    denoiser.prepare(torch.full((channels, 1, 1), 700.0), torch.full((channels, 1, 1), 90.0))
    denoiser.spread.fill_(1.3)
    checkpoint.save_denoiser(folder / "student.safetensors", denoiser)
    return denoiser.eval()


def light(outputs: int = 1) -> LightUNet:
    return LightUNet(width=8, depth=1, out_channels=outputs)


def images(channels: int = 1) -> list[Tensor]:
    return [700 + 90 * torch.randn(batch, channels, *size) for batch, *size in SIZES]


@torch.inference_mode()
def assert_same(found: dict[str, np.ndarray], denoiser: DirectDenoiser, noisy: Tensor) -> None:
    expected = denoiser.maps(noisy)
    assert list(found) == list(expected)
    for name, image in expected.items():
        assert found[name].shape == image.shape
        np.testing.assert_allclose(found[name], image, rtol=0, atol=1e-4 * 90)


def run_onnx(path: Path, denoiser: DirectDenoiser, channels: int = 1) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    for noisy in images(channels):
        found = session.run(None, {"noisy": noisy.numpy()})
        assert_same(dict(zip(names, found, strict=True)), denoiser, noisy)


@pytest.mark.slow
def test_onnx_has_every_map_at_any_size(tmp_path):
    pytest.importorskip("onnxscript")
    unet = UNet(2, 6, depth=1, filters=2)
    denoiser = run_of(tmp_path, unet, Quantiles(), channels=2)
    path = export(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["student.onnx", "student.safetensors"]
    assert str(Path(graph.__file__).parent).encode() not in path.read_bytes()
    run_onnx(path, denoiser, channels=2)


class Relu(L2):
    outputs = ("relu",)


@pytest.mark.slow
def test_onnx_of_a_network_of_another_library(tmp_path):
    """Whose operators have names of their own, one as the map."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("segmentation_models_pytorch")
    denoiser = run_of(tmp_path, EncoderDecoder("Unet", "tu-resnet10t", depth=3), Relu())
    run_onnx(export(tmp_path, tmp_path / "deep.onnx", trust=__name__), denoiser)


@pytest.mark.slow
def test_a_program_runs_where_the_toolkit_is_not(tmp_path, capsys):
    denoiser = run_of(tmp_path, light(2), MeanVariance())
    path, answers = tmp_path / "p.pt2", tmp_path / "answers.pt"
    assert main(["export", str(tmp_path), "--out", str(path), "--format", "torch-export"]) == 0
    assert str(path) in capsys.readouterr().out
    noisy = images()
    torch.save(noisy, tmp_path / "noisy.pt")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['distill', 'students', 'losses', 'samplers']))\n"
        "import torch; program, noisy, answers = sys.argv[1:]; module = torch.export.load(program).module()\n"
        "torch.save([dict(module(each)) for each in torch.load(noisy)], answers)"
    )
    files = [str(path), str(tmp_path / "noisy.pt"), str(answers)]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    for each, found in zip(noisy, torch.load(answers), strict=True):
        assert_same({name: image.numpy() for name, image in found.items()}, denoiser, each)


@pytest.mark.slow
def test_a_bioimageio_package_passes_their_test(tmp_path):
    core = pytest.importorskip("bioimageio.core")
    pytest.importorskip("onnxscript")
    denoiser = run_of(tmp_path, light(2), MeanVariance())
    path = export(tmp_path, format="bioimageio", author="A. Person", license="CC-BY-4.0")
    model = core.load_model_description(path)
    assert model.authors[0].name == "A. Person" and model.license == "CC-BY-4.0" and model.covers
    noisy = torch.randn(1, 1, 33, 51)
    for weights in ("onnx", "torchscript"):
        runner = core.create_prediction_pipeline(model, weight_format=weights)
        found = core.predict(model=runner, inputs={"noisy": noisy.numpy()}).members
        assert_same({str(k): v.data.to_numpy() for k, v in found.items()}, denoiser, noisy)
    for name, image in load_denoiser(path).maps(noisy).items():
        assert image.equal(load_denoiser(tmp_path).maps(noisy)[name])


@pytest.mark.parametrize(
    ("backbone", "loss", "scale"),
    [(UNet(2, 6, depth=2, filters=2), Quantiles(), 1), (StabilizedUNet(2, 2), L2(), 1),
     (UNet(2, 2, depth=1, filters=2, scale=2), L2(), 2)],
)  # fmt: skip
def test_torchscript_has_every_map_at_any_size_and_on_any_device(backbone, loss, scale, tmp_path):
    denoiser = DirectDenoiser(backbone, loss, 2, scale=scale).eval().requires_grad_(False)
    denoiser.prepare(torch.full((2, 1, 1), 700.0), torch.full((2, 1, 1), 90.0))
    path = tmp_path / "student.pt"
    graph.save_torchscript(denoiser, path)
    answer = backends.open_torchscript(path, loss.outputs)
    for noisy in images(2):
        assert_same({name: image.numpy() for name, image in answer(noisy).items()}, denoiser, noisy)
    assert [each.name for each in tmp_path.iterdir()] == ["student.pt"]
    with zipfile.ZipFile(path) as archive:
        assert not any(
            str(Path(graph.__file__).parent).encode() in archive.read(n) for n in archive.namelist()
        )
    with warnings.catch_warnings():  # deprecated in torch
        warnings.simplefilter("ignore")
        assert "Device" not in str(torch.jit.load(path).inlined_graph)  # of any, none would fit another one


@pytest.mark.parametrize("missing", [False, True])
def test_what_cannot_be_traced_is_left_out_with_a_line(missing, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    backbone = light() if missing else Branching()
    denoiser = DirectDenoiser(backbone, L2()).eval().requires_grad_(False)
    if missing:  # as it will be in a later torch
        monkeypatch.delattr(torch.jit, "trace")
    examples = [
        (sign * torch.ones(1, 1, 8, 8), denoiser.maps(sign * torch.ones(1, 1, 8, 8))) for sign in (1, -1)
    ]
    assert not _write_torchscript(denoiser, tmp_path / "student.pt", examples, "mine")
    assert "mine: without TorchScript in the package" in caplog.text and len(caplog.records) == 1


class Branching(nn.Module):
    """What it computes depends on the pixels, which no graph can say."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("backbone", "loss", "options", "message"),
    [
        (light(), L2(), {"format": "tensorflow"}, "allowed are onnx, torch-export, bioimageio"),
        (light(), L2(), {"out": "student.pt2"}, "ends in .onnx"),
        (light(), L2(), {"out": "absent/student.onnx"}, "folder does not exist"),
        (light(), L2(), {"out": "there.onnx"}, "exists already"),
        (light(), L2(), {"format": "bioimageio"}, "license: none given.* such as MIT, .*--license MIT"),
        (light(), L2(), {"format": "bioimageio", "license": "free"}, "license: got 'free'"),
        (light(), L2(), {"format": "bioimageio", "license": "MIT", "author": "A/B"}, "author: got 'A/B'"),
        (Branching(), L2(), {"format": "torch-export"}, "Branching cannot be exported as torch-export"),
        (
            NoiseConditioned(UNet(4, depth=1, filters=2), scales=[1]),
            EnergyScore(),
            {"format": "torch-export"},
            "draws at random",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(backbone, loss, options, message, tmp_path, monkeypatch):
    if options.get("format") not in ("tensorflow", "torch-export"):
        pytest.importorskip("bioimageio.core")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path, backbone, loss)
    Path("there.onnx").touch()
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        export(".", trust=__name__, **options)
    assert "\n" not in str(error.value) and sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("bioimageio", "bioimageio.core")])
def test_a_missing_package_is_named(format, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}; pip install"):
        export(tmp_path, format=format)


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    run_of(tmp_path, light(), L2())
    program = graph.program

    def wrong(denoiser: DirectDenoiser) -> torch.export.ExportedProgram:
        denoiser.std.mul_(1.01)
        return program(denoiser)

    monkeypatch.setattr(graph, "program", wrong)
    with pytest.raises(UserError, match="comes out wrong as torch-export: mean of images"):
        export(tmp_path, format="torch-export")
    assert [each.name for each in tmp_path.iterdir()] == ["student.safetensors"]
