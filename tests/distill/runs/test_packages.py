"""Packages that `export` wrote for bioimage.io, in place of a run."""

import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from distill import DirectDenoiser, UserError, denoise, load_denoiser, load_sampler, predict
from distill.__main__ import main
from distill.runs import packages
from distill.runs.checkpoint import save_denoiser
from distill.runs.tensors import load, save
from losses import L2, MeanVariance
from students import UNet


def packed(folder: Path, outputs: int = 1, **others: bytes) -> Path:
    """A package as `export` writes it, as far as distill reads it."""
    denoiser = DirectDenoiser(UNet(1, outputs, depth=1, filters=2), MeanVariance() if outputs == 2 else L2())
    denoiser.prepare(torch.full((1, 1, 1), 200.0), torch.full((1, 1, 1), 40.0))
    denoiser.spread.fill_(1.5)
    save_denoiser(folder / packages.STUDENT, denoiser)
    path = folder / "denoiser.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / packages.STUDENT, packages.STUDENT)
        archive.writestr("rdf.yaml", "type: model")
    return path


def test_predict_gives_what_the_run_gives(tmp_path, noisy, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path, outputs=2)
    tifffile.imwrite("noisy.tif", noisy, metadata={"axes": "TYX"})
    for network, out in {path.name: "clean.tif", ".": "expected.tif"}.items():
        assert main(["predict", network, "noisy.tif", "--out", out, "--device", "cpu"]) == 0
    for name in ("", "_std"):
        found, expected = tifffile.imread(f"clean{name}.tif"), tifffile.imread(f"expected{name}.tif")
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "calibration.json").write_text("of the run beside it")
    assert load_denoiser(path).spread == 1.5
    assert main(["predict", path.name, "noisy.tif", "--out", "drawn.tif", "--draws", "2"]) == 2
    assert "a student and no sampler; pass the folder of its run" in capsys.readouterr().err


def test_denoise_with_a_package(tmp_path, noisy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, metadata={"axes": "TYX"})
    run = denoise("noisy.tif", "clean.tif", trained=path, device="cpu")
    np.testing.assert_array_equal(tifffile.imread("clean.tif"), predict(path, "noisy.tif"))
    np.testing.assert_array_equal(predict(run, "noisy.tif"), predict(path, "noisy.tif"))
    assert Path("clean.run/report.html").exists()
    written = Path("clean.tif").stat().st_mtime_ns
    denoise("noisy.tif", "clean.tif", trained=path, device="cpu")  # nothing is left to do
    assert Path("clean.tif").stat().st_mtime_ns == written


def bomb(archive: zipfile.ZipFile) -> None:
    with archive.open(packages.STUDENT, "w") as member:
        for _ in range(20):
            member.write(bytes(10**6))


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo(packages.STUDENT)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr(packages.STUDENT, b"")
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(packages.STUDENT, b"")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            lambda archive: archive.writestr("weights.pt", b"x"),
            "has no student.safetensors; .* opens packages",
        ),
        (bomb, "would grow from 0.0.* MB to 20 MB of memory"),
        (link, "has a link, or a path outside of it"),
        (twice, "has 2 student.safetensors"),
        (lambda archive: archive.writestr("../../owned", b"x"), "a path outside of it"),
        (lambda archive: archive.writestr("/owned", b"x"), "a path outside of it"),
        (lambda archive: archive.writestr("..\\owned", b"x"), "a path outside of it"),
        (lambda archive: archive.writestr(packages.STUDENT, b"x" * 30), "damaged or not a safetensors file"),
    ],
)
def test_packages_of_others_and_made_to_harm_are_one_line(fill, message, tmp_path):
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    with pytest.raises(UserError, match=message) as caught:
        load_denoiser(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert [each.name for each in tmp_path.iterdir()] == ["package.zip"]


def test_a_huge_member_is_refused_by_its_size_alone(tmp_path, monkeypatch):
    path = packed(tmp_path)
    monkeypatch.setattr(packages, "MOST_BYTES", 100)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("reads it"))
    with pytest.raises(UserError, match="unlike any student"):
        load_denoiser(path)


def test_damage_and_foreign_classes_are_refused_as_in_a_run(tmp_path):
    path = packed(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with suppress(UserError):  # none where no byte of the student is hit
            load_denoiser(path)
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="damaged, or not a package"):
        load_denoiser(path)
    with pytest.raises(UserError, match="no sampler"):
        load_sampler(path)
    stored, header = load(tmp_path / packages.STUDENT)
    foreign = header | {"backbone": {"class": "os.system", "arguments": {}}}
    save(tmp_path / packages.STUDENT, stored, foreign)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / packages.STUDENT, packages.STUDENT)
    with pytest.raises(UserError, match=r"denoiser\.zip: names the class os\.system"):
        load_denoiser(path)
