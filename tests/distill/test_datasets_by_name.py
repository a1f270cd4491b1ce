"""The paper's data sets, on small archives with the true layout, served on this machine alone."""

import hashlib
import http.server
import io
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile

from distill.datasets import RECORDS, load
from distill.errors import UserError
from samplers import GaussianMixtureNoise, HistogramNoise

REGIONS = {  # of frames of 516 x 520 pixels
    "convallaria": (512, 512),
    "mouse-actin": (516, 512),
    "mouse-nuclei": (516, 256),
    "struct-convallaria": (512, 512),
}


def stack(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Frames of one scene in raw counts: a ramp with noise whose variance is linear in it."""
    ramp = np.linspace(300, 3000, shape[-1])
    return np.random.default_rng(seed).normal(ramp, np.sqrt(ramp), shape).astype(np.uint16)


def zipped(record, path: Path, noisy: np.ndarray) -> Path:
    """The record's archive: its TIFFs in a folder, and what a Mac adds."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(record.files):
            file = io.BytesIO()
            tifffile.imwrite(file, noisy if i == 0 else stack(9, (8, 32, 64)), photometric="minisblack")
            archive.writestr(f"{path.stem}/{name}", file.getvalue())
            archive.writestr(f"__MACOSX/{path.stem}/._{name}", b"")
    return path


def tarred(path: Path, fovs=range(1, 21), frames: int = 3, size: int = 32, less: int = 0) -> Path:
    """FMD's layout; frames begin with the numbers of their field of view and of their own, ground truth
    is 100 + field of view. `less`: so many frames fewer in field of view 2."""
    imagecodecs = pytest.importorskip("imagecodecs")
    with tarfile.open(path, "w") as archive:

        def add(name: str, image: np.ndarray) -> None:
            data = imagecodecs.png_encode(image)
            member = tarfile.TarInfo(f"{path.stem}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for fov in fovs:
            for frame in range(frames - less * (fov == 2)):
                image = stack(frame, (size, size)) // 16
                image[0, 0], image[0, 1] = fov, frame
                add(f"raw/{fov}/HV110_P0500510{frame:03}.png", image.clip(0, 255).astype(np.uint8))
                add(f"avg2/{fov}/HV110_P0500510{frame:03}.png", np.zeros((4, 4), np.uint8))
            truth = np.full((size, size), 100 + fov, np.uint8)
            truth[0] = 50
            add(f"gt/{fov}/avg50.png", truth)
    return path


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a server on this machine offers; the records' URLs lead there."""
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DISTILL_DATA", raising=False)
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

        def send_header(self, key, value):
            longer = key == "Content-Length" and (folder / "cut").exists()
            super().send_header(key, str(int(value) + 100) if longer else value)

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, record in RECORDS.items():
        url = f"http://127.0.0.1:{server.server_port}/{record.archive.replace(' ', '%20')}"
        monkeypatch.setitem(RECORDS, name, replace(record, url=url))
    yield folder, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", REGIONS)
def test_a_zenodo_stack(name, tmp_path):
    record = RECORDS[name]
    noisy = stack(0, (3, 516, 520))
    zipped(record, tmp_path / record.archive, noisy)
    data = load(name, tmp_path)
    np.testing.assert_array_equal(data.noisy, noisy)
    assert isinstance(data.noisy, np.memmap)
    height, width = REGIONS[name]
    test = noisy[:, :height, :width]
    np.testing.assert_array_equal(data.test_noisy, test)
    np.testing.assert_allclose(data.test_clean, test.mean(0), rtol=1e-6)
    assert data.test_clean.dtype == np.float32 and data.psnr_offset == 0
    assert data.calibration.shape == ((1, 3, 516, 520) if name == "struct-convallaria" else (1, 8, 32, 64))


@pytest.mark.parametrize("name", ["confocal-mice", "two-photon-mice"])
def test_fields_of_view(name, tmp_path):
    tarred(tmp_path / RECORDS[name].archive)
    data = load(name, tmp_path)
    assert data.noisy.shape == (57, 32, 32) and data.noisy.dtype == np.uint8
    others = [*range(1, 19), 20]  # in numeric order
    np.testing.assert_array_equal(data.noisy[:, 0, 0], np.repeat(others, 3))
    np.testing.assert_array_equal(data.noisy[:, 0, 1], np.tile([0, 1, 2], 19))
    np.testing.assert_array_equal(data.test_noisy[:, 0, :2], [[19, i] for i in range(3)])
    np.testing.assert_array_equal(data.test_clean[1], np.full(32, 119, np.float32))
    assert data.psnr_offset == pytest.approx(20 * np.log10(255 / 69))
    model = data.noise_model()
    assert isinstance(model, HistogramNoise)
    # One bin for each grey value, each in the middle of its bin.
    width = (model.high - model.low) / len(model.table)
    assert (width, model.low % 1) == (1, 0.5)
    folder = tmp_path / Path(RECORDS[name].archive).stem
    assert {path.name for path in folder.iterdir()} == {"raw", "gt"}  # not the averages of 2, 4, ...
    assert not list(tmp_path.glob(".*"))


def test_the_noise_model_is_fitted_to_the_calibration(tmp_path, monkeypatch):
    record = RECORDS["mouse-actin"]
    quick = partial(record.fit_noise, steps=10)
    monkeypatch.setitem(RECORDS, "mouse-actin", replace(record, fit_noise=quick))
    zipped(record, tmp_path / record.archive, np.zeros((2, 20, 20), np.uint16))
    model = load("mouse-actin", tmp_path).noise_model()
    assert isinstance(model, GaussianMixtureNoise)
    assert (model.min_sigma, np.shape(model.weight)) == (200, (9, 2))
    calibration = stack(9, (8, 32, 64)).mean(0)
    assert (model.min_signal, model.max_signal) == pytest.approx((calibration.min(), calibration.max()))


def test_the_paper_s_numbers():
    assert [r.title for r in RECORDS.values()] == [
        "Convallaria", "Confocal Mice", "2 Photon Mice", "Mouse Actin", "Mouse Nuclei", "Struct. Convallaria",
    ]  # fmt: skip
    for record in RECORDS.values():
        medians, means = zip(*(v for k, v in record.psnrs.items() if "draw" in k), strict=True)
        assert [*medians] == sorted(medians) and [*means] == sorted(means)
        assert all(mean >= median for median, mean in zip(medians, means, strict=True))
        assert min(record.psnrs["student"]) > max(medians)
    assert [*RECORDS["convallaria"].psnrs] == [
        "noisy input", "1 draw", "10 draws", "100 draws", "1000 draws", "student",
    ]  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
def test_an_unpacked_folder_will_do(inside, tmp_path):
    """Nothing is written, nothing downloaded."""
    folder = tmp_path / "Struct_Convallaria"
    folder.mkdir()
    tifffile.imwrite(folder / "flower.tif", stack(0, (2, 20, 30)))
    data = load("struct-convallaria", folder if inside else tmp_path)
    assert data.noisy.shape == (2, 20, 30)
    assert [*tmp_path.rglob("*")] == [folder, folder / "flower.tif"]


def test_a_download_is_kept_recorded_and_verified(served, tmp_path, monkeypatch):
    folder, asked = served
    archive = zipped(RECORDS["mouse-nuclei"], folder / "Mouse skull nuclei.zip", stack(0, (2, 20, 300)))
    root = tmp_path / "data"
    monkeypatch.setenv("DISTILL_DATA", str(root))
    load("mouse-nuclei")
    data = load("mouse-nuclei")
    assert data.test_noisy.shape == (2, 20, 256) and asked == ["/Mouse%20skull%20nuclei.zip"]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (root / f"{archive.name}.sha256").read_text() == f"{digest}  {archive.name}\n"
    assert sorted(p.name for p in root.iterdir()) == [archive.stem, archive.name, f"{archive.name}.sha256"]

    with open(root / archive.name, "ab") as file:
        file.write(b"tampered")
    with pytest.raises(UserError, match="SHA-256 is .* but was " + digest):
        load("mouse-nuclei")

    # Fetched again, it must be what it was: also where its publisher has replaced it.
    (root / archive.name).unlink()
    load("mouse-nuclei")
    (root / archive.stem).rename(root / "elsewhere")
    zipped(RECORDS["mouse-nuclei"], archive, stack(1, (2, 20, 300)))
    with pytest.raises(UserError, match="damaged or replaced"):
        load("mouse-nuclei")


def test_a_web_page_instead_of_the_archive(served, tmp_path):
    folder, _ = served
    (folder / "Confocal_MICE.tar").write_text("<!DOCTYPE html><html>Virus scan warning</html>")
    with pytest.raises(UserError, match=r"a web page .* by hand from https://drive.google.com/file/d/11af"):
        load("confocal-mice", tmp_path / "data")
    assert not [*(tmp_path / "data").iterdir()]

    (tmp_path / "Confocal_MICE.tar").write_text("<html>saved by a person</html>")
    with pytest.raises(UserError, match="a web page"):
        load("confocal-mice", tmp_path)


def test_half_an_archive_never_counts(served, tmp_path):
    folder, _ = served
    archive = tarred(folder / "Confocal_MICE.tar")
    root = tmp_path / "data"
    (folder / "cut").touch()  # the connection ends before the file does
    with pytest.raises(UserError, match="cannot be downloaded"):
        load("confocal-mice", root)
    assert not [*root.iterdir()]

    (root / archive.name).write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(UserError, match="cannot be unpacked"):
        load("confocal-mice", root)
    assert [*root.iterdir()] == [root / archive.name]

    (root / archive.name).unlink()
    (folder / "cut").unlink()
    assert load("confocal-mice", root).test_noisy.shape == (3, 32, 32)


def test_offline(served, tmp_path, monkeypatch):
    record = replace(RECORDS["convallaria"], url="http://127.0.0.1:9/Convallaria_diaphragm.zip")
    monkeypatch.setitem(RECORDS, "convallaria", record)
    with pytest.raises(UserError) as caught:
        load("convallaria", tmp_path / "data")
    text = str(caught.value)
    assert text.startswith("Convallaria_diaphragm.zip: cannot be downloaded from http://127.0.0.1:9/")
    assert "by hand from https://zenodo.org/records/5156913" in text and str(tmp_path / "data") in text
    assert "\n" not in text


def test_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match="pooch: not installed"):
        load("convallaria", tmp_path)


def test_wrong_input(tmp_path):
    with pytest.raises(UserError, match="got 'Convallaria', allowed are convallaria, confocal-mice"):
        load("Convallaria", tmp_path)
    (tmp_path / "Mouse actin").mkdir()
    with pytest.raises(
        UserError, match=r"lacks sample_attempt2.tif and diaphragm.tif; complete it, or remove"
    ):
        load("mouse-actin", tmp_path)
    with zipfile.ZipFile(tmp_path / "Struct_Convallaria.zip", "w") as archive:
        archive.writestr("other.tif", b"")
    with pytest.raises(UserError, match=r"Struct_Convallaria.zip: lacks flower.tif"):
        load("struct-convallaria", tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fovs": range(1, 19)}, r"lacks the fields of view 19, 20"),
        ({"less": 1}, "fields of view of different shapes"),
        ({"less": 3}, r"lacks the fields of view 2;"),
    ],
)
def test_fields_of_view_that_lack_something(wrong, message, tmp_path):
    tarred(tmp_path / "Confocal_MICE.tar", **wrong)
    with pytest.raises(UserError, match=message):
        load("confocal-mice", tmp_path)


def test_nothing_is_unpacked_outside(tmp_path):
    with tarfile.open(tmp_path / "Confocal_MICE.tar", "w") as archive:
        member = tarfile.TarInfo("../raw/1/a.png")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match="cannot be unpacked"):
        load("confocal-mice", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Confocal_MICE.tar"]
