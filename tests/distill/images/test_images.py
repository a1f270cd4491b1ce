import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from distill.errors import UserError
from distill.images.sources import as_stack
from distill.images.stack import LazyFrames, Stack
from distill.images.statistics import statistics
from distill.images.tiff import read
from distill.images.tiff_target import write

torch.set_num_threads(1)
SIZES = {"S": 2, "T": 3, "C": 4, "Z": 5, "Y": 6, "X": 7}


@st.composite
def axes_orders(draw, letters="STCZ"):
    chosen = draw(st.lists(st.sampled_from(letters), unique=True, max_size=4))
    return "".join(draw(st.permutations([*chosen, "Y", "X"])))


def numbered(axes, dtype="uint16", sizes=SIZES):
    shape = [sizes[a] for a in axes]
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


def fails(word, call, *args, **kwargs):
    """The one-line message of the UserError that the call must raise."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text and word in text
    return text


# Axes ------------------------------------------------------------------------------------------


@given(axes_orders())
def test_frames_and_restore_are_inverse(axes):
    stack = as_stack(numbered(axes), axes)
    frames = stack.frames
    lead = [a for a in axes if a in "STZ"]
    n_channels = SIZES["C"] if "C" in axes else 1
    assert frames.shape == (np.prod([SIZES[a] for a in lead], dtype=int), n_channels, 6, 7)
    np.testing.assert_array_equal(stack.restore(frames), stack.pixels)
    assert stack.restored_axes(n_channels) == axes


@pytest.mark.parametrize("axes", ["YX", "TYX", "YXT", "CTYX", "XYC", "TCZYX"])
@pytest.mark.parametrize("channels", [1, 3])
def test_restore_with_other_channels(axes, channels):
    stack = as_stack(numbered(axes), axes)
    frames = np.repeat(stack.frames[:, :1], channels, axis=1)
    restored, names = stack.restore(frames), stack.restored_axes(channels)
    assert ("C" in names) == ("C" in axes or channels > 1)
    assert restored.shape == tuple({**SIZES, "C": channels}[a] for a in names)
    if names.endswith("YX"):
        np.testing.assert_array_equal(as_stack(restored, names).frames, frames)


def test_frames_run_in_file_order():
    stack = as_stack(numbered("ZTYX"), "ZTYX")
    np.testing.assert_array_equal(stack.frames[1, 0], stack.pixels[0, 1])
    assert np.shares_memory(stack.frames, stack.pixels)


def test_arrays_tensors_and_stacks():
    assert [as_stack(np.zeros(s)).axes for s in [(4, 5), (3, 4, 5), (2, 3, 4, 5)]] == [
        "YX",
        "TYX",
        "TCYX",
    ]
    assert as_stack(torch.zeros(4, 5, dtype=torch.bfloat16)).pixels.dtype == np.float32
    stack = as_stack(torch.zeros(2, 4, 5, requires_grad=True), "zyx")
    assert as_stack(stack).axes == "ZYX" and as_stack(stack, "CYX").frames.shape == (1, 2, 4, 5)


@pytest.mark.parametrize(
    ("shape", "axes", "word"),
    [
        ((5, 6), "YQ", "unknown letter 'Q'"),
        ((5, 6), "YY", "repeat"),
        ((5, 6, 7), "YX", "do not fit shape (5, 6, 7)"),
        ((5, 6), "TX", "lack Y or X"),
        ((5,), None, "do not fit"),
        ((2, 2, 2, 5, 6), None, "--axes"),
        ((0, 6), "YX", "no pixels"),
    ],
)
def test_wrong_axes_and_shapes(tmp_path, shape, axes, word):
    assert fails(word, as_stack, np.zeros(shape), axes).startswith("array: ")
    if axes and 0 not in shape:
        tifffile.imwrite(tmp_path / "odd.tif", np.zeros(shape, "u1"), photometric="minisblack")
        assert fails(word, read, tmp_path / "odd.tif", axes).startswith("odd.tif: ")


def test_wrong_dtype():
    fails("complex64", as_stack, np.zeros((4, 4), "c8"))
    fails("object", as_stack, np.full((4, 4), None))


# Reading ---------------------------------------------------------------------------------------


def test_memory_map_stays_unread(tmp_path):
    path = tmp_path / "big.tif"
    tifffile.memmap(
        path,
        shape=(40, 2, 3, 64, 64),
        dtype="uint16",
        metadata={"axes": "TCZYX"},
        photometric="minisblack",
    )
    stack = read(path)
    assert isinstance(stack.pixels, np.memmap) and stack.pixels.mode == "r"
    frames = stack.frames
    assert isinstance(frames, LazyFrames) and frames.shape == (120, 2, 64, 64) == stack.frames.shape
    np.testing.assert_array_equal(frames[7], stack.pixels[2, :, 1])
    np.testing.assert_array_equal(frames[2:5, :, 3:9], np.asarray(frames)[2:5, :, 3:9])
    plain = read(path, "TZCYX").frames
    assert isinstance(plain, np.memmap) and np.shares_memory(plain, plain.base)


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"byteorder": ">"}, {"metadata": None}])
def test_compressed_big_endian_and_bare(tmp_path, options):
    pixels = numbered("TYX")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    stack = read(tmp_path / "a.tif")
    assert stack.axes == "TYX" and isinstance(stack.pixels, np.memmap) == ("compression" not in options)
    np.testing.assert_array_equal(stack.pixels, pixels)


def test_several_series_are_positions(tmp_path, caplog):
    path = tmp_path / "positions.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        for i in range(3):
            tif.write(numbered("TYX") + i, metadata={"axes": "TYX"}, photometric="minisblack")
        tif.write(numbered("YX"), metadata={"axes": "YX"}, photometric="minisblack")
    stack = read(path)
    assert [record.levelname for record in caplog.records if "left out" in record.message] == ["WARNING"]
    assert stack.axes == "STYX" and stack.pixels[2, 0, 0, 0] == 2


def test_unreadable_files(tmp_path):
    text, rgb = tmp_path / "text.tif", tmp_path / "rgb.tif"
    text.write_text("no image")
    (tmp_path / "empty.tif").touch()
    tifffile.imwrite(rgb, np.zeros((8, 9, 3), "u1"), photometric="rgb")
    fails("missing.tif: no such file", read, tmp_path / "missing.tif")
    fails("is a folder", read, tmp_path)
    fails("text.tif: cannot be read", read, text)
    fails("empty.tif: cannot be read", read, tmp_path / "empty.tif")
    assert "--axes YXC" in fails("rgb.tif: RGB", read, rgb)
    assert read(rgb, "YXC").frames.shape == (1, 3, 8, 9)


@given(st.integers(0, 2000), st.sampled_from(["zlib", None]), st.sampled_from(["a.tif", "a.ome.tif"]))
def test_a_cut_file_is_read_or_refused_in_one_line(tmp_path, keep, compression, name):
    path = tmp_path / name
    tifffile.imwrite(path, numbered("TYX"), photometric="minisblack", compression=compression)
    path.write_bytes(path.read_bytes()[:keep])
    message = name
    try:
        read(path)
    except UserError as error:
        message = str(error)
    assert "\n" not in message and name in message


# Writing ---------------------------------------------------------------------------------------


DTYPES = ["?", "u1", "i1", "i2", "u2", ">u2", "u4", ">i4", "i8", "u8", "f2", "f4", ">f4", "f8"]


@st.composite
def stacks(draw, dtypes=DTYPES) -> Stack:
    """Any axes in any order, of 1 to 3 each, of any type and layout in memory."""
    axes = draw(axes_orders())
    pixels = numbered(axes, draw(st.sampled_from(dtypes)), {a: draw(st.integers(1, 3)) for a in axes})
    pixels = draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray, np.flip]))(pixels)
    return Stack(
        pixels, axes, pixel_size={"x": 0.065, "y": 0.13} | dict.fromkeys("z" * ("Z" in axes), 0.3), unit="µm"
    )


def in_ome(stack: Stack) -> tuple[str, np.ndarray]:
    """What OME-TIFF keeps: S first, Y and X last, no others of size 1."""
    order = [*"S" * ("S" in stack.axes), *(a for a in stack.axes if a not in "SYX"), "Y", "X"]
    moved = stack.pixels.transpose([stack.axes.index(a) for a in order])
    kept = [i for i, a in enumerate(order) if a in "YX" or moved.shape[i] > 1]
    return "".join(order[i] for i in kept), moved.reshape([moved.shape[i] for i in kept])


@given(stacks(), st.sampled_from(["float32", "input"]))
def test_plain_round_trip(tmp_path, like, target):
    write(tmp_path / "out.tif", like.frames, like, target, overwrite=True)
    back = read(tmp_path / "out.tif")
    assert back.axes == like.axes and back.unit == "µm" and back.pixel_size == pytest.approx(like.pixel_size)
    assert back.pixels.dtype == ("f4" if target == "float32" else like.pixels.dtype.newbyteorder("="))
    np.testing.assert_array_equal(back.pixels, like.pixels)


@given(
    stacks([each for each in DTYPES if each not in ("i8", "u8", "f2")]), st.sampled_from(["float32", "input"])
)
def test_ome_round_trip(tmp_path, like, target):
    write(tmp_path / "out.ome.tif", like.frames, like, target, overwrite=True)
    back, (axes, pixels) = read(tmp_path / "out.ome.tif"), in_ome(like)
    assert (back.axes, back.unit, back.source) == (axes, "µm", "ome") and back.pixel_size == like.pixel_size
    assert back.pixels.dtype == ("f4" if target == "float32" else like.pixels.dtype.newbyteorder("="))
    np.testing.assert_array_equal(back.pixels, pixels)


@given(stacks(), st.data())
def test_lazy_frames_are_indexed_like_an_array(like, data):
    lead = [a for a in like.axes if a in "STZ"]
    assume(lead and "C" in like.axes)
    plain = np.asarray(like.frames)
    lazy = LazyFrames(like.pixels, like.axes)
    n, numbers = len(plain), st.integers(-len(plain), len(plain) - 1)
    key = data.draw(numbers | st.slices(n) | st.lists(numbers, max_size=4).map(lambda i: np.array(i, int)))
    assert lazy.shape == plain.shape and len(lazy) == n
    np.testing.assert_array_equal(lazy[key], plain[key])
    np.testing.assert_array_equal(lazy[key, :, 1:], plain[key, :, 1:])


def test_ome_moves_y_and_x_last_and_keeps_names_and_time(tmp_path):
    extra = {"Channel": {"Name": ["a", "b", "c", "d"]}, "TimeIncrement": "0.5"}
    like = Stack(numbered("YCXT"), "YCXT", source="ome", extra=extra)
    write(tmp_path / "a.ome.tif", like.frames, like)
    back = read(tmp_path / "a.ome.tif")
    assert back.axes == "CTYX" and back.extra == extra
    np.testing.assert_array_equal(back.frames, like.frames)


@pytest.mark.parametrize("axes", ["YX", "TYX", "ZCYX", "TZCYX"])
def test_imagej_round_trip(tmp_path, axes):
    source, path = tmp_path / "source.tif", tmp_path / "out.tif"
    tifffile.imwrite(
        source,
        numbered(axes),
        imagej=True,
        resolution=(1 / 0.065, 1 / 0.065),
        metadata={"axes": axes, "spacing": 0.3, "unit": "um", "finterval": 2.5},
    )
    like = read(source)
    assert isinstance(like.pixels, np.memmap) and like.axes == axes and like.source == "imagej"
    for target in ("float32", "input"):
        write(path, like.frames, like, target, overwrite=True)
        back = read(path)
        assert (back.axes, back.source, back.unit) == (axes, "imagej", "µm")
        assert back.pixel_size == pytest.approx({"x": 0.065, "y": 0.065, "z": 0.3})
        assert back.extra == like.extra == {"finterval": 2.5}
        np.testing.assert_array_equal(back.pixels, like.pixels)


@pytest.mark.parametrize("axes", sorted("".join(p) + "YX" for p in permutations("TC", 2)))
def test_axes_of_size_one_survive(tmp_path, axes):
    like = Stack(numbered(axes, sizes={**SIZES, "C": 1}), axes)
    write(tmp_path / "one.tif", like.frames, like)
    back = read(tmp_path / "one.tif")
    assert (back.axes, back.pixels.shape) == (axes, like.pixels.shape)


def test_compression_and_extra_channels_are_written(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbered("TYX"), compression="zlib", photometric="minisblack")
    like = read(tmp_path / "a.tif")
    assert like.compression == "zlib"
    write(tmp_path / "b.tif", np.repeat(like.frames, 3, axis=1), like)
    back = read(tmp_path / "b.tif")
    assert back.axes == "TCYX" and back.compression == "zlib"


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8"])
def test_input_dtype_rounds_and_clips(tmp_path, dtype):
    like = as_stack(np.zeros((1, 4), dtype))
    write(tmp_path / "a.tif", torch.tensor([[[[-1e30, 1.5, 2.6, 1e30]]]]), like, "input")
    back, info = read(tmp_path / "a.tif").pixels[0], np.iinfo(dtype)
    assert [*back[:3]] == [info.min, 2, 3] and float(back[3]) == pytest.approx(info.max, rel=1e-9)


def test_refusals_leave_nothing_behind(tmp_path, monkeypatch):
    like = as_stack(numbered("TYX", "i8"))
    path, frames = tmp_path / "a.tif", like.frames
    fails("a.png: pass a name that ends in .tif", write, tmp_path / "a.png", frames, like)
    fails("does not exist", write, tmp_path / "no" / "a.tif", frames, like)
    fails("int8", write, path, frames, like, "int8")
    fails("OME-TIFF cannot hold int64", write, tmp_path / "a.ome.tif", frames, like, "input")
    fails("do not belong", write, path, frames[:2], like)
    assert not list(tmp_path.iterdir())
    write(path, frames, like)
    before = path.read_bytes()
    fails("a.tif: exists already", write, path, frames, like)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    fails("a.tif: cannot be written (disk full)", write, path, frames, like, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_big_files_lazy_frames_and_odd_units(tmp_path, name, monkeypatch):
    path = tmp_path / name
    tifffile.imwrite(path, numbered("TCZYX"), metadata={"axes": "TCZYX"}, photometric="minisblack")
    like = read(path)
    like.pixel_size, like.unit = {"x": 2.0, "y": 2.0}, "Å"
    assert isinstance(like.frames, LazyFrames)
    for limit in (1e9, 100):
        monkeypatch.setattr("distill.images.tiff_target.BIG_BYTES", limit)
        write(path, like.frames, like, overwrite=True)
        back = read(path)
        with tifffile.TiffFile(path) as tif:
            assert tif.is_bigtiff == (limit == 100)
        assert isinstance(back.pixels, np.memmap)
        assert (back.axes, back.unit, back.pixel_size) == ("TCZYX", "Å", like.pixel_size)
        np.testing.assert_array_equal(back.pixels, like.pixels)


# Statistics ------------------------------------------------------------------------------------


def test_statistics_match_numpy(monkeypatch):
    pixels = np.random.default_rng(0).poisson(50, (9, 2, 40, 30)).astype(">u2") + 60000
    stack = as_stack(pixels)
    mean, std = statistics(stack)
    assert mean.shape == std.shape == (2, 1, 1) and mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean.ravel(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.ravel(), pixels.std((0, 2, 3)), rtol=1e-6)
    monkeypatch.setattr("distill.images.statistics.SCAN_BYTES", pixels.nbytes // 3)  # now a sample of blocks
    np.testing.assert_allclose(statistics(stack)[0].ravel(), pixels.mean((0, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("axes", ["YX", "CYX", "TYX", "TZCYX"])
def test_statistics_of_compressed_files_are_those_of_their_pixels(tmp_path, axes):
    pixels = numbered(axes)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata={"axes": axes}, compression="zlib")
    stack = read(tmp_path / "a.tif", axes=axes)
    assert isinstance(stack.frames, LazyFrames)
    order = np.concatenate(stack.frames.groups())
    assert sorted(order) == list(range(len(stack.frames)))
    np.testing.assert_allclose(statistics(stack), statistics(as_stack(pixels, axes)), rtol=1e-6)


def test_statistics_refuse_nan_and_constant():
    pixels = np.random.default_rng(0).normal(size=(3, 2, 8, 8))
    broken, flat = pixels.copy(), pixels.copy()
    broken[2, 1, 3, 4], flat[:, 1] = np.inf, 0.1
    assert "frame 2" in fails("array: ", statistics, as_stack(broken))
    assert "channel 1 is constant" in fails("array: ", statistics, as_stack(flat))
    statistics(as_stack(broken[:2]))


# Real data -------------------------------------------------------------------------------------


@pytest.mark.skipif("DISTILL_TEST_DATA" not in os.environ, reason="DISTILL_TEST_DATA is not set")
def test_real_stack(tmp_path):
    stack = read(Path(os.environ["DISTILL_TEST_DATA"]) / "confocal_bpae_fov1_noisy.tif")
    assert isinstance(stack.pixels, np.memmap) or stack.compression
    assert stack.axes == "TYX" and stack.frames.shape == (50, 1, 512, 512)
    like = as_stack(stack.pixels[:3])
    mean, std = statistics(like)
    np.testing.assert_allclose(mean.item(), stack.pixels[:3].mean(), rtol=1e-5)
    assert 0 < std.item() < 255
    write(tmp_path / "out.tif", like.frames, like, "input")
    np.testing.assert_array_equal(read(tmp_path / "out.tif").pixels, stack.pixels[:3])


def two_files(folder, name: str) -> Path:
    """An OME-TIFF of two planes, of which the second is in the file `name`."""
    planes = numbered("TYX")[:2].astype("u2")
    size = f'SizeX="{planes.shape[2]}" SizeY="{planes.shape[1]}" SizeZ="1" SizeC="1" SizeT="2"'
    parts = "".join(
        f'<TiffData FirstT="{t}" PlaneCount="1"><UUID FileName="{file}">urn:uuid:{t}</UUID></TiffData>'
        for t, file in enumerate(("a.ome.tif", name))
    )
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" {size}>'
        f'<Channel ID="Channel:0:0"/>{parts}'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(folder / "a.ome.tif", planes[0], description=xml, metadata=None)
    tifffile.imwrite(folder / name, planes[1], metadata=None)
    return folder / "a.ome.tif"


def test_planes_in_other_files_of_the_same_folder_are_read(tmp_path):
    stack = read(two_files(tmp_path, "b.ome.tif"))
    np.testing.assert_array_equal(stack.frames[:, 0], numbered("TYX")[:2])


@pytest.mark.parametrize("absolute", [True, False])
def test_metadata_do_not_choose_files_of_other_folders(tmp_path, absolute):
    (tmp_path / "here").mkdir()
    path = two_files(tmp_path / "here", str(tmp_path / "b.tif") if absolute else "../b.tif")
    fails("outside its own folder", read, path)


def test_links_to_other_folders_are_not_followed_by_metadata(tmp_path):
    (tmp_path / "here").mkdir()
    path = two_files(tmp_path / "here", "b.tif")
    (tmp_path / "here" / "b.tif").rename(tmp_path / "b.tif")
    (tmp_path / "here" / "b.tif").symlink_to(tmp_path / "b.tif")
    fails("outside its own folder, b.tif", read, path)
