import os
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UserError
from distill.images.tiff import read
from distill.training.patches import Patches, split

torch.set_num_threads(1)


def index_image(n, height, width):
    """(N, 1, Y, X) whose values are the pixels' own numbers: tells where a patch came from."""
    return np.arange(n * height * width, dtype=np.int32).reshape(n, 1, height, width)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_whole_frames_are_split():
    frames = index_image(50, 32, 32)
    train, val = split(frames, 0.15, 16, seed=3)
    assert len(val) == 8 and sorted([*train[:, 0], *val[:, 0]]) == list(range(50))
    assert val[:, 0].tolist() != list(range(val[0, 0], val[0, 0] + 8))  # spread
    np.testing.assert_array_equal(val, split(frames, 0.15, 16, seed=3)[1])
    assert val[:, 0].tolist() != split(frames, 0.15, 16, seed=4)[1][:, 0].tolist()


@pytest.mark.parametrize(("fraction", "n_val"), [(0.01, 1), (0.15, 1), (0.99, 2), (0, 0)])
def test_each_side_gets_a_frame(fraction, n_val):
    train, val = split(index_image(3, 8, 8), fraction, 8, seed=0)
    assert (len(train), len(val)) == (3 - n_val, n_val)


@given(
    st.integers(1, 20),
    st.integers(20, 90),
    st.integers(20, 90),
    st.floats(0.01, 0.9),
    st.integers(0, 99),
)
def test_a_single_frame_leaks_nothing(size, height, width, fraction, seed):
    frames = index_image(1, height, width)
    if max(height, width) < 2 * size:
        with pytest.raises(UserError, match="cannot be split"):
            split(frames, fraction, size, seed)
        return
    seen = []
    for regions in split(frames, fraction, size, seed):
        patches = Patches(frames, regions, size)
        drawn = torch.cat([patches.sample(50, rng(seed)), patches.grid(20)])
        seen.append(set(drawn.ravel().int().tolist()))
    assert seen[0].isdisjoint(seen[1]) and all(seen)


@given(st.floats(0.1, 0.9), st.integers(0, 9))
def test_single_frame_fraction_is_respected(fraction, seed):
    train, val = split(index_image(1, 200, 100), fraction, 8, seed)
    area = [int((r[0, 2] - r[0, 1]) * (r[0, 4] - r[0, 3])) for r in (train, val)]
    assert sum(area) == 20000 and area[1] / 20000 == pytest.approx(fraction, abs=0.041)


def test_split_errors_say_what_to_do():
    for call, word in [
        ((index_image(3, 20, 30), 0.1, 24, 0), "pass --patch_size between 1 and 20"),
        ((index_image(3, 20, 30), 0.1, 0, 0), "pass --patch_size"),
        ((index_image(3, 20, 30), 1.0, 8, 0), "val_fraction is 1.0"),
        ((index_image(1, 20, 30), 0.1, 18, 0), "pass --patch_size 15 or less"),
    ]:
        with pytest.raises(UserError) as error:
            split(*call)
        assert word in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no region"):
        Patches(index_image(1, 20, 30), [], 4)


def test_all_eight_orientations_occur():
    frames = index_image(1, 4, 4)
    patches = Patches(frames, split(frames, 0, 4, 0)[0], 4)
    drawn = patches.sample(4000, rng())
    kinds, counts = torch.unique(drawn.flatten(1), dim=0, return_counts=True)
    turned = [np.rot90(f, k).ravel() for f in (frames[0, 0], frames[0, 0].T) for k in range(4)]
    assert {tuple(k) for k in kinds.int().tolist()} == {tuple(t.tolist()) for t in turned}
    assert len(kinds) == 8 and counts.min() > 400  # 500 expected, sd 21
    assert len(torch.unique(patches.sample(50, rng(), allowed=[0]).flatten(1), dim=0)) == 1


def test_every_position_is_equally_likely():
    frames = index_image(2, 6, 7)
    patches = Patches(frames, [(0, 0, 6, 0, 7), (1, 1, 5, 2, 5)], 3)  # 20 positions and 2
    corners = patches.sample(22 * 300, rng(), allowed=[0])[:, 0, 0, 0]
    values, counts = torch.unique(corners, return_counts=True)
    assert len(values) == 22 and counts.min() > 220 and counts.max() < 380  # 300 expected, sd 17
    assert {42 + 7 + 2, 42 + 14 + 2} <= set(values.int().tolist())


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i4", "f8", "?"])
def test_values_are_raw_counts(dtype):
    frames = rng().integers(0, 60000, (3, 2, 9, 8)).astype(dtype)
    drawn = Patches(frames, split(frames, 0, 8, 0)[0], 8).sample(5, rng(), allowed=[0])
    assert drawn.shape == (5, 2, 8, 8) and drawn.dtype == torch.float32
    whole = frames.astype(np.float32)
    assert all(any((p.numpy() == f[:, y : y + 8]).all() for f in whole for y in (0, 1)) for p in drawn)


def test_seeded():
    frames = index_image(4, 30, 30)
    patches = Patches(frames, split(frames, 0, 8, 0)[0], 8)
    assert torch.equal(patches.sample(9, rng(1)), patches.sample(9, rng(1)))
    assert not torch.equal(patches.sample(9, rng(1)), patches.sample(9, rng(2)))


def test_grid_is_fixed_spread_and_without_overlap():
    frames = index_image(8, 34, 66)
    patches = Patches(frames, split(frames, 0, 8, 0)[0], 8)
    grid = patches.grid(64)
    assert grid.shape == (64, 1, 8, 8) and torch.equal(grid, patches.grid(64))
    assert grid.unique().numel() == grid.numel()
    corner = grid[:, 0, 0, 0].int().numpy()
    assert np.bincount(corner // (34 * 66)).tolist() == [8] * 8  # as many from each frame
    assert len(np.unique(corner % 66)) == 8  # from every column of tiles
    assert patches.grid(10**6).shape == (8 * 4 * 8, 1, 8, 8)


def test_memory_map_reads_patches(tmp_path):
    pixels = rng().integers(0, 60000, (6, 2, 3, 20, 20), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        metadata={"axes": "TCZYX"},
        photometric="minisblack",
        byteorder=">",
    )
    frames = read(tmp_path / "a.tif").frames
    merged = np.moveaxis(pixels, 1, 2).reshape(18, 2, 20, 20)
    regions = split(merged, 0.2, 8, 0)[0]
    ours, expected = (Patches(f, regions, 8).sample(20, rng()) for f in (frames, merged))
    assert torch.equal(ours, expected)


def test_sampling_is_fast():
    frames = rng().integers(0, 60000, (20, 1, 256, 256), dtype=np.uint16)
    patches, generator, best = Patches(frames, split(frames, 0, 64, 0)[0], 64), rng(), np.inf
    for _ in range(30):
        start = time.perf_counter()
        patches.sample(64, generator)
        best = min(best, time.perf_counter() - start)
    assert best < 3e-3


@pytest.mark.skipif("DISTILL_TEST_DATA" not in os.environ, reason="DISTILL_TEST_DATA is not set")
def test_real_single_frame():
    frames = np.asarray(read(Path(os.environ["DISTILL_TEST_DATA"]) / "convallaria_frame0.tif").frames)
    train, val = split(frames, 0.15, 64, seed=0)
    drawn = Patches(frames, train, 64).sample(64, rng())
    assert drawn.shape == (64, 1, 64, 64) and drawn.min() >= frames.min() and drawn.max() <= frames.max()
    assert len(Patches(frames, val, 64).grid(32)) == 32
