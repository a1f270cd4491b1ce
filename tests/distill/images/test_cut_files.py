"""A TIFF that was cut short, or holds less than it promises, is one line and never a shorter stack."""

import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from distill.errors import UserError
from distill.images.tiff import read

PIXELS = np.random.default_rng(0).integers(0, 999, (8, 2, 16, 18)).astype("u2")
FRAMES = PIXELS[:, 0]
IMAGEJ = "ImageJ=1.53c\nimages=8\nslices=8\nloop=false\n"
OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="18" SizeY="16"
SizeZ="1" SizeC="1" SizeT="8">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>"""
PLANES = [f'<TiffData FirstT="{i}" IFD="{i}" PlaneCount="1"/>' for i in range(8)]


def pages(path, description=None, **options):
    """One after another, each behind its directory, as libtiff and Bio-Formats write them."""
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as tif:
        for i, frame in enumerate(FRAMES):
            text = description if i == 0 else None
            tif.write(frame, contiguous=False, metadata=None, photometric="minisblack", description=text,
                      **options)  # fmt: skip


def one_directory(path):
    """As ImageJ itself writes stacks of more than 4 GB: the first page alone is described."""
    tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata=None, description=IMAGEJ)
    with tifffile.TiffFile(path) as tif:
        first, end = tif.pages.first, (tif.series[0].dataoffset or 0) + FRAMES.nbytes
    whole = bytearray(path.read_bytes()[:end])
    at = first.offset + 2 + 12 * len(first.tags)
    whole[at : at + 4] = bytes(4)  # no next directory
    path.write_bytes(whole)


def pillow(path):
    first, *others = [Image.fromarray(frame.astype("u1")) for frame in FRAMES]
    first.save(path, save_all=True, append_images=others, compression="tiff_lzw")


def series(pixels, axes, **options):
    return lambda path: tifffile.imwrite(path, pixels, metadata={"axes": axes}, **options)


KINDS = {
    "imagej.tif": series(PIXELS, "TCYX", imagej=True),
    "imagej_one_directory.tif": one_directory,
    "imagej_compressed.tif": lambda path: pages(path, IMAGEJ, compression="zlib"),
    "plane.ome.tif": lambda path: pages(path, OME.format(planes="".join(PLANES))),
    "whole.ome.tif": series(PIXELS, "TCYX", photometric="minisblack"),
    "compressed.ome.tif": series(PIXELS, "TCYX", photometric="minisblack", compression="zlib"),
    "tiled.ome.tif": series(PIXELS, "TCYX", photometric="minisblack", tile=(16, 16)),
    "shaped.tif": series(PIXELS, "TCYX", photometric="minisblack"),
    "shaped_big.tif": series(PIXELS, "TCYX", photometric="minisblack", bigtiff=True),
    "plain.tif": lambda path: tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata=None),
    "pages.tif": pages,
    "strips.tif": lambda path: pages(path, rowsperstrip=5),
    "lzw_big.tif": lambda path: pages(path, bigtiff=True, compression="lzw"),
    "pillow.tif": pillow,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_cut_anywhere_is_one_line_and_never_a_shorter_stack(tmp_path, name, caplog):
    path, cut = tmp_path / name, tmp_path / f"cut_{name}"
    KINDS[name](path)
    good, whole = read(path), path.read_bytes()
    original = FRAMES.astype("u1") if name == "pillow.tif" else PIXELS if good.axes == "TCYX" else FRAMES
    np.testing.assert_array_equal(good.pixels, original)
    for keep in range(0, len(whole), len(whole) // 60):
        cut.write_bytes(whole[:keep])
        message = cut.name
        try:
            found = read(cut)
        except UserError as error:
            message = str(error)
        else:  # what is missing belongs to the last page's description
            assert keep > 0.9 * len(whole) and found.axes == good.axes
            np.testing.assert_array_equal(found.pixels, original)
        assert "\n" not in message and cut.name in message
    assert not caplog.records  # of tifffile, beside that one line


def test_less_than_the_metadata_promise_is_named(tmp_path):
    for text, message in (
        (IMAGEJ.replace("8", "9"), "state 9 planes, it has 8"),
        (OME.format(planes="".join(PLANES[:3])), "5 of 8 planes are missing"),
        (OME.format(planes="".join(PLANES[:3] + PLANES[4:])), "1 of 8 planes are missing"),
    ):
        pages(tmp_path / "a.tif", text)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "a.tif")


def test_users_who_silenced_tifffile_are_told_too(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FRAMES, photometric="minisblack", metadata=None)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:3000])
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with pytest.raises(UserError, match="cut short"):
            read(tmp_path / "a.tif")
        assert logging.getLogger("tifffile").level == logging.CRITICAL
    finally:
        logging.getLogger("tifffile").setLevel(logging.NOTSET)


def test_odd_tags_of_a_microscope_are_no_damage(tmp_path):
    odd = [(296, "H", 1, 9, False), (270, "B", 4, b"\xff\xfe\x81\x8d", False)]  # no such unit; no text
    tifffile.imwrite(tmp_path / "a.tif", FRAMES, photometric="minisblack", metadata=None, extratags=odd)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, FRAMES)
