"""Archives from folders and from a server: whole, as they were the first time, or not at all."""

import hashlib
import io
import sys
import tarfile
from dataclasses import replace

import pytest
import tifffile
from archives import stack, tarred, zipped

from distill.datasets import RECORDS, load
from distill.errors import UserError


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


def test_nothing_is_unpacked_outside(tmp_path):
    with tarfile.open(tmp_path / "Confocal_MICE.tar", "w") as archive:
        member = tarfile.TarInfo("../raw/1/a.png")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match="cannot be unpacked"):
        load("confocal-mice", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Confocal_MICE.tar"]
