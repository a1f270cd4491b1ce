"""Images that are written block by block, and go on after a kill."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import UserError
from distill.images.sources import as_stack
from distill.images.stack import Stack
from distill.images.targets import Writing, open_target, writing
from distill.images.tiff import read
from distill.images.volumes import as_volumes

zarr = pytest.importorskip("zarr")
yaozarrs = pytest.importorskip("yaozarrs")

EXTRA = {"Channel": {"Name": ["nuclei", "actin"]}, "TimeIncrement": 2.5, "TimeIncrementUnit": "s"}
SIZES = {"S": 2, "T": 3, "C": 2, "Z": 4, "Y": 70, "X": 50}


def image(axes="TCZYX", dtype="uint16", **options):
    pixels = np.random.default_rng(0).integers(0, 1000, [SIZES[a] for a in axes]).astype(dtype)
    return Stack(pixels, axes, "a", {"x": 0.1, "y": 0.2, "z": 0.5}, "µm", "ome", EXTRA, **options)


def blocks(stack, depth=1, height=32, width=32):
    n, _, rows, columns = stack.frames.shape
    for i in range(0, n, depth):
        for y in range(0, rows, height):
            for x in range(0, columns, width):
                yield i, y, x, np.asarray(stack.frames[i : i + depth, :, y : y + height, x : x + width])


def write_all(path, stack, depth=1, side=32, **options):
    with writing([open_target(path, stack, stack.frames.shape[1], **options)], "work", False) as written:
        todo = list(blocks(stack, depth, side, side))
        written.begin({}, len(todo))
        for i, (*where, block) in enumerate(todo):
            written.write(*where, [block])
            written.mark(i)


@pytest.mark.parametrize("axes", ["YX", "TCZYX", "ZTYX", "XYC", "CZYX"])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.ome.zarr"])
def test_blocks_make_the_image_whatever_its_axes(tmp_path, axes, name):
    stack = image(axes)
    write_all(tmp_path / name, stack, dtype="input")
    if name.endswith("zarr"):
        pixels, found = zarr.open_group(tmp_path / name)["0"][...], "".join(a for a in "TCZYX" if a in axes)
    else:
        back = read(tmp_path / name)
        pixels, found = back.pixels, back.axes
    expected = stack.pixels.transpose([axes.index(a) for a in found])
    np.testing.assert_array_equal(pixels, expected)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_zarr_keeps_axes_calibration_names_and_time(tmp_path):
    write_all(tmp_path / "a.ome.zarr", image(), depth=4)
    told = yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))
    assert told is None or told
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    about = yaozarrs.v05.Image.model_validate(group.attrs["ome"])
    (multiscale,) = about.multiscales
    assert [(axis.name, getattr(axis, "unit", None)) for axis in multiscale.axes] == [
        ("t", "second"), ("c", None), ("z", "micrometer"), ("y", "micrometer"), ("x", "micrometer"),
    ]  # fmt: skip
    assert multiscale.datasets[0].scale_transform.scale == [2.5, 1.0, 0.5, 0.2, 0.1]
    assert about.omero is not None and [each.label for each in about.omero.channels] == ["nuclei", "actin"]
    assert group["0"].metadata.dimension_names == ("t", "c", "z", "y", "x")


def test_channels_are_shown_with_the_range_of_the_middle_plane(tmp_path):
    pixels = np.arange(4, dtype="u2")[:, None, None, None] * np.ones((4, 1, 1100, 2), "u2")
    stack = Stack(pixels, "ZCYX", extra={"Channel": {"Name": ["GFP"]}})
    for name, each in (("a", stack), ("b", as_volumes(stack))):
        open_target(tmp_path / f"{name}.zarr", each, 1).create()
        ome = zarr.open_group(tmp_path / f".{name}.zarr.part", mode="r").attrs["ome"]
        (channel,) = yaozarrs.v05.Image.model_validate(ome).omero.channels
        assert channel.label == "GFP" and (channel.window.min, channel.window.max) == (2, 2)


def test_an_older_zarr_in_means_an_older_zarr_out(tmp_path):
    stack = image()
    stack.extra, stack.ome_zarr = EXTRA, "0.4"
    write_all(tmp_path / "a.zarr", stack, dtype="input")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.metadata.zarr_format == 2
    assert yaozarrs.v04.Image.model_validate(dict(group.attrs)).multiscales[0].version == "0.4"
    np.testing.assert_array_equal(group["0"][...], stack.pixels)
    assert (tmp_path / "a.zarr" / "0" / "0" / "0").is_dir()  # chunks' names have slashes
    with pytest.raises(UserError, match="has no shards"):
        open_target(tmp_path / "b.zarr", stack, 2, shards=64)


def test_chunks_shards_and_pyramid_on_request(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1000, (2, 601, 530)).astype(np.uint16)
    stack = Stack(pixels, "ZYX", pixel_size={"x": 0.1, "y": 0.2, "z": 0.5}, unit="µm")
    target = open_target(tmp_path / "a.zarr", stack, 1, chunks=32, shards=64, pyramid=True)
    assert target.grain == (1, 64, 64)
    write_all(tmp_path / "a.zarr", stack, side=64, dtype="input", chunks=32, shards=64, pyramid=True)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert (group["0"].chunks, group["0"].shards) == ((1, 32, 32), (1, 64, 64))
    assert [group[key].shape[1:] for key in "012"] == [(601, 530), (301, 265), (151, 133)]
    halved = np.rint(pixels[:, :600].reshape(2, 300, 2, 265, 2).mean((2, 4)))
    np.testing.assert_array_equal(group["1"][:, :300], halved)
    np.testing.assert_array_equal(group["1"][:, 300], np.rint(pixels[:, 600].reshape(2, 265, 2).mean(2)))
    level = yaozarrs.v05.Image.model_validate(group.attrs["ome"]).multiscales[0].datasets[2]
    assert level.scale_transform.scale == pytest.approx([0.5, 0.8, 0.4])
    assert level.translation_transform is not None
    assert level.translation_transform.translation == pytest.approx([0, 0.3, 0.15])


def test_chunks_are_those_of_the_input(tmp_path):
    array = zarr.create_array(
        tmp_path / "in.zarr", shape=(3, 2, 4, 70, 50), chunks=(2, 1, 2, 16, 20), dtype="u2"
    )
    target = open_target(tmp_path / "a.zarr", Stack(array, "TCZYX"), 2)  # type: ignore[arg-type]
    assert target.chunks == [1, 1, 2, 16, 20] and target.grain == (2, 16, 20)


@settings(max_examples=30)
@given(st.sampled_from(["a.tif", "a.ome.tif", "b.tif", "a.zarr"]), st.integers(0, 40), st.integers(0, 40))
def test_a_stopped_one_ends_with_the_bytes_of_an_undisturbed_one(tmp_path_factory, name, first, second):
    folder = tmp_path_factory.mktemp("a")
    stack = image("TCYX", compression="zlib" if name == "b.tif" else None)
    for each, stops in {"whole": [], "stopped": sorted((first, second))}.items():
        (folder / each).mkdir()
        for stop in [*stops, 10**9]:
            target = open_target(folder / each / name, stack, 2, "input", **chunks_of(name))
            stopped = Writing([target], "work", False)
            todo = list(blocks(stack))
            for i in [i for i in stopped.begin({"side": 32}, len(todo)) if i < stop]:
                stopped.write(*todo[i][:3], [todo[i][3]])
                stopped.mark(i)
            stopped.save()
        stopped.finish()
    assert contents(folder / "whole") == contents(folder / "stopped")


def chunks_of(name):
    return {"chunks": 16} if name.endswith("zarr") else {}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.tif", "b.tif", "a.zarr"])
def test_a_kill_between_two_names_is_made_good(tmp_path, name, monkeypatch):
    """Both images are complete, only the first has its name yet."""
    stack = image("TYX", compression="zlib" if name == "b.tif" else None)
    targets = [open_target(tmp_path / each, stack, 1) for each in (name, f"x{name}")]
    killed = Writing(targets, "work", False)
    for i in killed.begin({}, 3):
        killed.write(i, 0, 0, [stack.frames[i : i + 1]] * 2)
        killed.mark(i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets[1], "finish", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            killed.finish()
    assert (tmp_path / name).exists() and not (tmp_path / f"x{name}").exists()
    again = Writing(targets, "work", False)
    assert again.begin(again.plan or {}, 3) == []
    again.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"x{name}"]


def test_parts_of_other_work_are_replaced_and_those_of_an_empty_failure_go(tmp_path):
    stack, path = image("TYX"), tmp_path / "a.tif"
    first = Writing([open_target(path, stack, 1)], "one", False)
    first.begin({}, 3)
    first.write(0, 0, 0, [stack.frames[:1]])
    first.mark(0)
    first.save()
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), writing([open_target(path, stack, 1)], "two", False) as other:
        assert other.plan is None and other.begin({}, 3) == [0, 1, 2] and 1 / 0
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time(tmp_path):
    target = open_target(tmp_path / "a.tif", image("TYX"), 1)
    with (
        pytest.raises(UserError, match="is running"),
        writing([target], 1, False),
        writing([target], 1, False),
    ):
        pass


def test_refusals_come_before_the_work(tmp_path):
    (tmp_path / "there.zarr").mkdir()
    for name, options, message in [
        ("a.png", {}, "ends in"),
        ("a.tif", {"chunks": 64}, "need Zarr"),
        ("a.tif", {"dtype": "int3"}, "dtype"),
        ("there.zarr", {}, "exists already"),
        ("no/a.zarr", {}, "does not exist"),
        ("a.zarr", {"chunks": 48, "shards": 64}, "multiple"),
    ]:
        with (
            pytest.raises(UserError, match=message) as caught,
            writing([open_target(tmp_path / name, image(), 2, **options)], 1, True),
        ):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="positions"):
        open_target(tmp_path / "a.zarr", image("SYX"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["there.zarr"]


def test_a_tiff_larger_than_the_classic_limit_is_big(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.images.tiff_target.BIG_BYTES", 1000)
    write_all(tmp_path / "a.tif", image("TYX"))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_read_and_written_again_keeps_its_version(tmp_path, version):
    stack = Stack(np.ones((2, 32, 32), "f4"), "TYX", ome_zarr=version)
    for name in ("first", "again"):
        with writing([open_target(tmp_path / f"{name}.zarr", stack, 1)], {}, False) as written:
            written.begin({}, 1)
            written.write(0, 0, 0, [np.ones((2, 1, 32, 32), "f4")])
            written.mark(0)
        stack = as_stack(tmp_path / f"{name}.zarr")
    assert stack.ome_zarr == version
