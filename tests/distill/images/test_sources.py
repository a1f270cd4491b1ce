"""Files of many formats, and many files, as one stack of which only what is looked at is read."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import tifffile

from distill import UserError, read
from distill.__main__ import main
from distill.images.chunks import CACHE, Cache, Chunked
from distill.images.sources import as_stack
from distill.images.stack import Stack
from distill.images.statistics import statistics

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")
PIXELS = np.random.default_rng(0).poisson(100, (3, 2, 50, 70)).astype("u2")  # TCYX
AXES = [
    {"name": "t", "type": "time", "unit": "second"},
    {"name": "c", "type": "channel"},
    *({"name": name, "type": "space", "unit": "nanometer"} for name in "yx"),
]


def fails(word, *args, **kwargs):
    with pytest.raises(UserError) as error:
        as_stack(*args, **kwargs).frames[:]
    text = str(error.value)
    assert "\n" not in text and word in text
    return text


def ome_zarr(path, version="0.5", pixels=PIXELS, **options):
    scale = {"type": "scale", "scale": [2.0, 1.0, 130.0, 65.0]}
    images = [{"axes": AXES, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    window = {"start": 0, "end": 1, "min": 0, "max": 1}
    named = {"channels": [{"label": each, "color": "FFFFFF", "window": window} for each in ("DAPI", "GFP")]}
    ome = {"multiscales": images, "omero": named}
    if version == "0.4":
        images[0]["version"] = version
    attributes = ome if version == "0.4" else {"ome": ome | {"version": version}}
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3, attributes=attributes)
    options = {"chunks": (1, 1, 16, 32)} | options
    group.create_array("0", shape=pixels.shape, dtype=pixels.dtype, **options)[:] = pixels
    return path


@pytest.mark.parametrize(
    ("version", "options"),
    [("0.4", {}), ("0.5", {}), ("0.5", {"shards": (1, 2, 32, 64)}), ("0.5", {"chunks": (2, 2, 50, 9)})],
)
def test_ome_zarr_is_read_with_its_calibration(tmp_path, version, options):
    stack = read(ome_zarr(tmp_path / "a.ome.zarr", version, **options))
    assert (stack.axes, stack.unit, stack.pixel_size) == ("TCYX", "nm", {"y": 130.0, "x": 65.0})
    assert stack.extra == {
        "TimeIncrement": 2.0,
        "TimeIncrementUnit": "s",
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    np.testing.assert_array_equal(stack.frames, PIXELS)
    np.testing.assert_array_equal(stack.frames[2, :, 3:40, -9:], PIXELS[2, :, 3:40, -9:])
    mean, std = statistics(stack)
    np.testing.assert_allclose(mean.ravel(), PIXELS.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.ravel(), PIXELS.std((0, 2, 3)), rtol=1e-6)


def test_bare_arrays_tell_their_axes_or_have_them_guessed(tmp_path):
    zarr.create_array(tmp_path / "n.zarr", data=PIXELS, dimension_names=["c", "z", "y", "x"])
    zarr.create_array(tmp_path / "b.zarr", data=PIXELS, zarr_format=2)
    np.save(tmp_path / "b.npy", PIXELS)
    assert [read(tmp_path / name).axes for name in ("n.zarr", "b.zarr", "b.npy")] == ["CZYX", "TCYX", "TCYX"]
    assert read(tmp_path / "b.zarr", "ZCYX").axes == read(tmp_path / "b.npy", "ZCYX").axes == "ZCYX"
    assert isinstance(read(tmp_path / "b.npy").pixels, np.memmap)


def test_a_url_is_read_through_fsspec():
    pytest.importorskip("fsspec")
    ome_zarr("memory://there.ome.zarr")
    np.testing.assert_array_equal(read("memory://there.ome.zarr").frames, PIXELS)


def test_dask_arrays_are_computed_block_by_block():
    dask = pytest.importorskip("dask.array")
    computed = []
    array = dask.from_array(PIXELS, chunks=(1, 2, (20, 30), 35)).map_blocks(lambda b: computed.append(1) or b)
    stack = as_stack(array)
    computed.clear()
    np.testing.assert_array_equal(stack.frames[1, :, 5:15, 2:9], PIXELS[1, :, 5:15, 2:9])
    assert len(computed) <= 2  # the second has what a block of 30 rows has of the first 30


@pytest.mark.parametrize(
    ("break_it", "word"),
    [
        (lambda path: (path / "zarr.json").unlink(), "contains no Zarr array or group"),
        (lambda path: (path / "zarr.json").write_text("{"), "contains no Zarr array or group"),
        (lambda path: (path / "0" / "zarr.json").write_text("[]"), "a.ome.zarr/0: contains no Zarr array"),
        (
            lambda path: (path / "0" / "c" / "1" / "0" / "2" / "1").write_bytes(b"no"),
            "a.ome.zarr/0/c/1/0/2/1",
        ),
        (lambda path: change(path, lambda ome: ome.pop("multiscales")), "without OME metadata"),
        (
            lambda path: change(path, lambda ome: ome["multiscales"][0].pop("axes")),
            "multiscales.0.axes: Field",
        ),
        (
            lambda path: change(path, lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../b")),
            "node",
        ),
    ],
)
def test_broken_zarr_is_one_line_that_names_where(tmp_path, break_it, word):
    break_it(ome_zarr(tmp_path / "a.ome.zarr"))
    assert "a.ome.zarr" in fails(word, tmp_path / "a.ome.zarr")


def change(path, alter):
    text = json.loads((path / "zarr.json").read_text())
    alter(text["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(text))


@pytest.mark.parametrize(
    "options",
    [
        dict(compressors=zarr.codecs.GzipCodec()),
        dict(shards=(2, 50, 70)),
        dict(zarr_format=2, dtype=">u2"),
        dict(zarr_format=2, compressors=numcodecs.LZMA()),  # which tensorstore does not know
        dict(zarr_format=2, filters=[numcodecs.Delta("<u2")]),
    ],
)
def test_chunks_are_the_same_with_and_without_tensorstore(tmp_path, monkeypatch, options):
    data = PIXELS[:, 0].astype(options.pop("dtype", "<u2"))
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(1, 25, 35), **options)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr").pixels, data)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr").pixels, data)


def test_a_chunk_whose_checksum_fails_is_named(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=PIXELS[:, 0], chunks=(1, 50, 70), compressors=zarr.codecs.Crc32cCodec())
    chunk = path / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    stack = as_stack(path)
    np.testing.assert_array_equal(stack.frames[1], PIXELS[1, :1])
    assert "a.zarr/c/2/0/0: cannot be read" in fails("checksum", path)


# Several files ---------------------------------------------------------------------------------


def test_folders_globs_and_lists_are_one_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for i in range(11):
        tifffile.imwrite(f"in/f{i}.tif", PIXELS[0, 0] + i, compression="zlib" if i % 2 else None)
    Path("in/.hidden.tif").touch()
    Path("in/notes.txt").touch()
    for images in ("in", "in/*.tif", [f"in/f{i}.tif" for i in range(11)]):
        stack = read(images)
        assert stack.axes == "TYX" and stack.frames.shape == (11, 1, 50, 70)
        np.testing.assert_array_equal(stack.frames[10, 0, 5:9], PIXELS[0, 0, 5:9] + 10)
    assert read(["in/f3.tif"]).axes == "YX" and read(["in/f3.tif"]).name == "f3.tif"
    assert as_stack(as_stack("in", "XY"), "XY").axes == "TXY"  # axes are those of each file
    tifffile.imwrite("in/f20.tif", PIXELS[0, 0, 1:])
    assert "f20.tif is YX (49, 70) uint16" in fails("f0.tif is YX (50, 70)", "in")
    fails("no file matches", "in/*.png")
    Path("empty").mkdir()
    fails("folder without images", "empty")
    fails("empty list", [])


def test_times_of_several_files_are_positions(tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", PIXELS[:, 0] + i)
    stack = read(tmp_path)
    assert stack.axes == "STYX" and stack.frames.shape == (6, 1, 50, 70)
    np.testing.assert_array_equal(stack.restore(stack.frames[:])[1], PIXELS[:, 0] + 1)


@contextmanager
def few_open_files(more: int) -> Iterator[None]:
    """A limit like that of `ulimit -n`, which leaves room for `more` files."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/dev/fd")}
    free = [i for i in range(len(taken) + more) if i not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[more - 1] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_than_a_process_may_keep_open(tmp_path):
    pixels = np.arange(90 * 2 * 3, dtype="u2").reshape(90, 2, 3)
    (tmp_path / "npy").mkdir()
    for i, each in enumerate(pixels):
        np.save(tmp_path / "npy" / f"{i}.npy", each)
    with tifffile.TiffWriter(tmp_path / "positions.tif") as tif:
        for each in pixels:
            tif.write(each, photometric="minisblack", contiguous=False)
    for name in ("npy", "positions.tif"):
        with few_open_files(20):
            stack = read(tmp_path / name)
            np.testing.assert_array_equal(stack.pixels[...], pixels)
            np.testing.assert_array_equal(stack.frames[:, 0], pixels)


@pytest.mark.parametrize(
    "options",
    [{"tile": (16, 32)}, {"tile": (16, 32), "compression": "zlib", "predictor": True}, {"rowsperstrip": 7},
     {"rowsperstrip": 3, "compression": "lzw"}, {"byteorder": ">", "compression": "zlib"}],
)  # fmt: skip
def test_pages_are_read_in_tiles_and_strips(tmp_path, options, monkeypatch):
    monkeypatch.setattr("distill.images.pages.LEAST_BYTES", 2000)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata={"axes": "TCYX"}, photometric="minisblack", **options)
    stack = read(path)
    assert stack.axes == "TCYX"
    np.testing.assert_array_equal(stack.frames, PIXELS)
    np.testing.assert_array_equal(stack.frames[1, 1, 13:31, 20:50], PIXELS[1, 1, 13:31, 20:50])


def test_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS[:, 0], compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[2].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path).frames[1], PIXELS[1, :1])
    fails("a.tif: page 2, from row 0: cannot be read", path)


# Chunks ----------------------------------------------------------------------------------------


def counted(shape=(4, 6, 7), chunks=(2, 4, 4)):
    pixels, read_chunks = np.arange(np.prod(shape)).reshape(shape), []

    def chunk(index):
        read_chunks.append(index)
        return pixels[tuple(slice(i * c, i * c + c) for i, c in zip(index, chunks, strict=True))].copy()

    return pixels, Chunked(shape, pixels.dtype, chunks, chunk, str), read_chunks


def test_only_chunks_under_an_index_are_read_and_once():
    pixels, array, read_chunks = counted()
    for key in [
        (0, slice(1, 3), slice(0, 2)),
        (1, slice(0, 4), 3),
        (-3, slice(None, 4, 2), slice(2, None, -1)),
    ]:
        np.testing.assert_array_equal(array[key], pixels[key])
    assert read_chunks == [(0, 0, 0)]
    for key in [..., (slice(1, None), ..., 5), (slice(4, 4),), 3, (..., slice(None, None, -2))]:
        np.testing.assert_array_equal(array[key], pixels[key])
    assert len(read_chunks) == 8
    with pytest.raises(IndexError):
        array[4]


def test_the_cache_holds_no_more_than_its_limit(monkeypatch):
    cache = Cache(3 * 4 * 4 * 8)
    monkeypatch.setattr("distill.images.chunks.CACHE", cache)
    _, array, read_chunks = counted(shape=(8, 4, 4), chunks=(1, 4, 4))
    for i in (0, 1, 2, 0, 3, 0, 1):
        array[i]
    assert [i for i, *_ in read_chunks] == [0, 1, 2, 3, 1] and cache.size == cache.limit
    with cache.limited_to(0):
        assert cache.size == 0
    with cache.limited_to(1e9):
        np.asarray(array)
        assert cache.size == 8 * 4 * 4 * 8
    assert cache.size == cache.limit
    del array
    assert cache.size == 0


def test_a_sample_of_a_large_image_is_read_chunk_by_chunk(monkeypatch):
    pixels, array, read_chunks = counted(shape=(40, 24, 28), chunks=(4, 8, 7))
    monkeypatch.setattr("distill.images.statistics.SCAN_BYTES", pixels.nbytes / 4)
    monkeypatch.setattr(CACHE, "limit", 4 * 8 * 7 * 8 * 4)
    mean, _ = statistics(Stack(array, "TYX"))
    assert len(read_chunks) == len(set(read_chunks)) <= 1.1 * 10 * 3 * 4 / 4
    assert mean.item() == pytest.approx(pixels.mean(), rel=0.1)


# Formats of microscopes ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nd2", "czi", "lif"])
def test_a_file_of_a_microscope_that_is_none_is_one_line(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"nothing" * 99)
    package = {"nd2": "nd2", "czi": "czifile", "lif": "liffile"}[ending]
    pytest.importorskip(package)
    fails(f"a.{ending}: cannot be read", path)
    monkeypatch.setitem(sys.modules, package, None)
    fails("pip install 'posterior-distill[formats]'", path)


def test_lif(tmp_path):
    """The layout of Leica's file: a header in XML, and a block of memory for each image."""
    pytest.importorskip("liffile")
    pixels = PIXELS[:, 0]
    sizes = zip((1, 2, 4), (70, 50, 3), (2, 140, 7000), strict=True)  # X, Y, T: number, elements, bytes
    dimensions = "".join(
        f'<DimensionDescription DimID="{i}" NumberOfElements="{n}" Origin="0" Length="{1e-6 * (n - 1)}" '
        f'Unit="m" BytesInc="{step}" BitInc="0"/>' for i, n, step in sizes
    )  # fmt: skip
    numbers = 'DataType="0" ChannelTag="0" Resolution="16" BytesInc="0" BitInc="0" Min="0" Max="1"'
    channel = (
        f'<ChannelDescription {numbers} NameOfMeasuredQuantity="" Unit="" LUTName="" IsLUTInverted="0"/>'
    )
    image = f"<Channels>{channel}</Channels><Dimensions>{dimensions}</Dimensions>"
    image = f"<Image><ImageDescription>{image}</ImageDescription></Image>"
    memory = f'<Memory Size="{pixels.nbytes}" MemoryBlockID="MemBlock_1"/>'
    element = f'<Element Name="a" UniqueID="{uuid4()}"><Data>{image}</Data>{memory}</Element>'
    header = f'<Element Name="f"><Children>{element}</Children></Element>'
    header = f'<LMSDataContainerHeader Version="2">{header}</LMSDataContainerHeader>'
    name = "MemBlock_1".encode("utf-16-le")
    xml = struct.pack("<cI", b"*", len(header)) + header.encode("utf-16-le")
    block = struct.pack("<cQcI", b"*", pixels.nbytes, b"*", len(name) // 2) + name
    parts = [struct.pack("<II", 0x70, len(each)) + each for each in (xml, block)]
    (tmp_path / "a.lif").write_bytes(b"".join(parts) + pixels.tobytes())
    stack = read(tmp_path / "a.lif")
    assert (stack.axes, stack.unit) == ("TYX", "µm") and stack.pixel_size == pytest.approx({"x": 1, "y": 1})
    np.testing.assert_array_equal(stack.frames[:, 0], pixels)


def write_czi(path, pixels):
    """The layout of Zeiss's file: a header, a directory, and a block for each plane or tile."""

    def segment(kind: bytes, data: bytes) -> bytes:
        return struct.pack("<16sqq", kind, len(data), len(data)) + data

    def entry(t: int, x: int, at: int) -> bytes:
        axes = [(b"X", x, 35), (b"Y", 0, 50), (b"C", 0, 1), (b"T", t, 1)]
        head = struct.pack("<2siqiiBB4si", b"DV", 1, at, 0, 0, 0, 0, b"", len(axes))
        return head + b"".join(struct.pack("<4siifi", name, start, n, 0.0, n) for name, start, n in axes)

    distances = "".join(f'<Distance Id="{a}"><Value>1.3e-07</Value></Distance>' for a in "XY")
    xml = f"<Metadata><Scaling><Items>{distances}</Items></Scaling></Metadata>"
    xml = f"<ImageDocument>{xml}</ImageDocument>".encode()
    file, entries = bytearray(segment(b"ZISRAWFILE", bytes(512))), []
    for t, x in ((t, x) for t in range(len(pixels)) for x in (0, 35)):
        entries.append(entry(t, x, len(file)))
        tile = pixels[t, :, x : x + 35].tobytes()
        file += segment(
            b"ZISRAWSUBBLOCK", struct.pack("<iiq", 0, 0, len(tile)) + entries[-1].ljust(240, b"\0") + tile
        )
    directory = len(file)
    file += segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    metadata = len(file)
    file += segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)
    file[32:112] = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, b"", b"", 0, directory, metadata, 0, 0)[:80]
    path.write_bytes(file)


def test_czi(tmp_path):
    pytest.importorskip("czifile")
    write_czi(tmp_path / "a.czi", PIXELS[:, 0])
    stack = read(tmp_path / "a.czi")
    assert (stack.axes, stack.unit) == ("TCYX", "µm") and stack.pixel_size == pytest.approx(
        {"x": 0.13, "y": 0.13}
    )
    np.testing.assert_array_equal(stack.frames, PIXELS[:, :1])


def test_a_frame_of_a_czi_looks_at_its_own_tiles_alone(tmp_path, monkeypatch):
    entry = pytest.importorskip("czifile.czifile").DirectoryEntryDV
    looked_at, axes = [], entry.axes.func
    monkeypatch.setattr(entry, "axes", property(lambda tile: looked_at.append(tile) or axes(tile)))
    write_czi(tmp_path / "a.czi", pixels := np.tile(PIXELS[:, 0], (10, 1, 1)))
    stack = read(tmp_path / "a.czi")
    looked_at.clear()
    np.testing.assert_array_equal(stack.frames[17, 0], pixels[17])
    assert len(set(looked_at)) <= 2


# Command line ----------------------------------------------------------------------------------


def test_info_describes_a_zarr_and_several_files(tmp_path, capsys):
    ome_zarr(tmp_path / "a.ome.zarr")
    assert main(["info", str(tmp_path / "a.ome.zarr")]) == 0
    out = capsys.readouterr().out
    assert "axes TCYX" in out and "chunks    (1, 1, 16, 32)" in out and "channels  DAPI, GFP" in out
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", PIXELS[i, 0])
    assert main(["info", *(str(tmp_path / f"{i}.npy") for i in range(3))]) == 0
    assert "frames    (3, 1, 50, 70)" in capsys.readouterr().out


def test_without_zarr_the_extra_is_named(tmp_path, monkeypatch):
    ome_zarr(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    fails("pip install 'posterior-distill[zarr]'", tmp_path / "a.zarr")


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8}])
def test_jpeg_in_tiff_is_read(layout, tmp_path):
    pixels = np.random.default_rng(0).integers(90, 110, (48, 40)).astype("u1")
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="jpeg", **layout)
    assert np.array_equal(read(tmp_path / "a.tif").frames[0, 0], tifffile.imread(tmp_path / "a.tif"))


def test_a_file_of_another_kind_is_no_damaged_tiff(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"a.png: is no TIFF file; save it as one"):
        read(tmp_path / "a.png")
