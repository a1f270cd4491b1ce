"""One command from noisy images to a denoised file, its verdict and its report."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from distill import DirectDenoiser, denoise, denoising, predict
from distill.__main__ import main
from distill.denoising import DRAWS, FRAMES, SIDE, run_beside
from losses import L2
from students import UNet

QUICK = ["--budget", "1s", "--device", "cpu"]


@pytest.fixture
def images(noisy, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX", "unit": "um"})
    tifffile.imwrite("other.tif", noisy[:2] + 5, metadata={"axes": "TYX"})
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_a_file_to_a_result_and_to_the_next_file(images, capsys, monkeypatch):
    command = ["denoise", "noisy.tif", "--out", "clean.ome.tif", *QUICK]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "residuals" in out and "The draws differ" in out and "Next: " in out
    assert "clean.run/report.html" in out and Path("clean.run/report.html").exists()
    assert tifffile.imread("clean.ome.tif").shape == (4, 48, 40)
    np.testing.assert_array_equal(predict("clean.run", "noisy.tif"), tifffile.imread("clean.ome.tif"))

    written = Path("clean.ome.tif").stat().st_mtime_ns
    assert main(command) == 0  # nothing is left to do
    assert Path("clean.ome.tif").stat().st_mtime_ns == written and "clean.ome.tif: written" in out

    monkeypatch.setattr(denoising, "train", None)
    again = out.split("For the next images: distill ")[1].split()
    assert again == ["denoise", "other.tif", "--out", "other_clean.ome.tif", "--with", "clean.run"]
    assert main(again) == 0
    np.testing.assert_array_equal(predict("clean.run", "other.tif"), tifffile.imread("other_clean.ome.tif"))
    assert "other.tif" in Path("other_clean.run/report.html").read_text()


def test_a_small_frame_is_split_for_validation(images, noisy):
    tifffile.imwrite("small.tif", noisy[0])  # smaller than two of the usual patches
    assert main(["denoise", "small.tif", "--out", "c.tif", *QUICK]) == 0
    assert tifffile.imread("c.tif").shape == noisy[0].shape


def test_the_shipped_weights_on_several_files_and_into_a_zarr(images):
    assert main(["denoise", "other.tif", "other.tif", "--out", "c.tif", "--with", "pretrained"]) == 0
    expected = predict("pretrained", ["other.tif", "other.tif"])
    np.testing.assert_array_equal(tifffile.imread("c.tif").ravel(), expected.ravel())
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("yaozarrs")
    assert main(["denoise", "*er.tif", "--out", "z.ome.zarr", "--with", "c.run", "--dtype", "input"]) == 0
    np.testing.assert_array_equal(zarr.open_group("z.ome.zarr")["0"][:], predict("c.run", "other.tif"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["noisy.tif"], "out"),
        (["none.tif", "--out", "c.tif"], "none.tif: no such file"),
        (["noisy.tif", "--out", "c.png"], "ends in .tif"),
        (["noisy.tif", "--out", "no/c.tif"], "folder does not exist"),
        (["noisy.tif", "--out", "other.tif"], "exists already"),
        (["noisy.tif", "--out", "c.tif", "--budget", "10"], "budget: got '10'"),
        (["noisy.tif", "--out", "c.tif", "--memory", "10MB"], "memory: got 0.01 GB"),
        (["noisy.tif", "--out", "c.tif", "--memory", "lots"], "memory: got 'lots'"),
        (["noisy.tif", "--out", "c.tif", "--tile", "8"], "tile: got 8"),
        (["noisy.tif", "--out", "c.tif", "--pyramid"], "pyramid"),
        (["noisy.tif", "--out", "c.tif", "--axes", "YX"], "axes"),
        (["noisy.tif", "--out", "c.tif", "--run", "noisy.tif"], "noisy.tif: is a file"),
        (["noisy.tif", "--out", "c.tif", "--with", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_the_training(images, options, words, capsys):
    before = contents(images)
    assert main(["denoise", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert contents(images) == before


def test_a_stopped_command_resumes(images, capsys, monkeypatch):
    command = ["denoise", "noisy.tif", "--out", "clean.tif", *QUICK]

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(denoising, "evaluate", stop)
        assert main(command) == 130
    assert "to resume, run the same command again" in capsys.readouterr().err
    student, result = Path("clean.run/student.safetensors"), Path("clean.tif")
    before = [path.stat().st_mtime_ns for path in (student, result)]
    assert main(command) == 0 and Path("clean.run/report.html").exists()
    assert [path.stat().st_mtime_ns for path in (student, result)] == before
    assert main([*command[:-4], "--budget", "2s", "--device", "cpu"]) == 2  # another result would replace it
    assert "exists already" in capsys.readouterr().err


def test_a_training_is_not_replaced_by_a_copy_of_another(images, capsys):
    Path("clean.run").mkdir()
    Path("clean.run/checkpoint.safetensors").touch()
    assert main(["denoise", "noisy.tif", "--out", "clean.tif", "--with", "pretrained"]) == 2
    assert "contains a training" in capsys.readouterr().err


def test_the_evaluation_is_of_a_sample(monkeypatch, tmp_path):
    sizes = []
    for name in ("predict", "report", "save_run", "pretrained_sampler", "pretrained_denoiser"):
        monkeypatch.setattr(denoising, name, lambda *args, **options: DirectDenoiser(UNet(2, 2), L2(), 2))
    monkeypatch.setattr(
        denoising, "evaluate", lambda run, noisy, **o: sizes.append((noisy.frames.shape, o["draws"]))
    )
    monkeypatch.setattr(DirectDenoiser, "light", None, raising=False)  # of the sampler
    large = np.random.default_rng(0).normal(100, 5, (6, 2, 600, 520)).astype(np.float32)
    denoise(large, tmp_path / "c.tif", trained="pretrained", device="cpu")
    assert sizes == [((FRAMES, 2, SIDE, SIDE), DRAWS)]


@pytest.mark.parametrize("name", ["clean.tif", "clean.ome.tif", "clean.ome.zarr", "clean.OME.TIFF"])
def test_the_run_lies_beside_the_output(name):
    assert run_beside(f"a.b/{name}").as_posix() == "a.b/clean.run"
