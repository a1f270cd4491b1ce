"""Images larger than memory: halos, tiles and batches that follow from a ceiling, and runs that go on."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from distill import UserError, predict
from distill.denoiser import DirectDenoiser
from distill.images.sources import as_stack
from distill.images.tiff import read
from distill.memory import as_bytes
from distill.prediction.blocks import Prediction
from distill.prediction.plan import Cost, Plan, fitting
from distill.prediction.receptive_field import receptive_field
from distill.prediction.stream import stream
from losses import L2, MeanVariance
from samplers import FunctionSampler
from students import LightUNet, StabilizedUNet, UNet


class Wide(nn.Module):
    """Sees 5 px upwards, 40 px downwards, 3 px to the left and right."""

    def forward(self, x):
        return torch.roll(x, 5, 2) + torch.roll(x, -40, 2) + torch.roll(x, 3, 3) + torch.roll(x, -3, 3)


class Whole(nn.Module):
    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)


def denoiser(student, loss=None):
    return DirectDenoiser(student, loss or L2()).eval()


def test_the_receptive_field_is_what_the_network_sees():
    assert receptive_field(denoiser(nn.Conv2d(1, 1, 7, padding=3))) == 3
    assert receptive_field(denoiser(Wide())) == 40
    assert receptive_field(denoiser(Whole())) is None
    found = denoiser(UNet(depth=1, filters=2))
    torch.nn.init.zeros_(found.backbone.get_parameter("head.1.weight"))  # which hides it from gradients
    assert 5 < (receptive_field(found) or 0) < 40


@pytest.mark.parametrize("student", [LightUNet(width=8), UNet(depth=3, filters=4), StabilizedUNet(width=8)])
def test_tiles_with_the_computed_halo_are_the_whole_image(student):
    torch.manual_seed(0)
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.3)
    network = denoiser(student)
    noisy = np.random.default_rng(0).normal(0, 1, (2, 521, 700)).astype(np.float32)
    whole = predict(network, noisy, device="cpu", precision="fp32")
    tiled = predict(network, noisy, device="cpu", precision="fp32", tile=128)
    assert abs(tiled - whole).max() <= 1e-5 * abs(whole).max()


def test_a_ceiling_decides_on_tiles_and_batches():
    cost, shape = Cost(computed=1000, moved=100), (50, 1, 1000, 3000)
    whole = fitting(shape, (1, 1, 1), lambda: 1 / 0, cost, 1e11)
    assert whole == Plan(1000, 3000, frames=15, batch=15)
    tiles = fitting(shape, (1, 1, 1), lambda: 90, cost, 1e9)
    assert tiles.batch == 1 and tiles.height % 64 == 0 == tiles.width % 64
    assert (tiles.height + 180) * (tiles.width + 180) * 1100 < 1e9
    in_chunks = fitting(shape, (4, 100, 300), lambda: 90, cost, 2e9)
    assert in_chunks.frames == 4 and in_chunks.height % 100 == 0 == in_chunks.width % 300
    with pytest.raises(UserError, match=r"the smallest tile needs .* GB .*; pass more"):
        fitting(shape, (1, 1, 1), lambda: 90, cost, 1.7e8)


@pytest.mark.parametrize("plan", [Plan(64, 128, 3, 2, 40), Plan(200, 100, 1, 1, 10), Plan(100, 300, 4, 4, 0)])
def test_blocks_cover_every_pixel_once(plan):
    seen = np.zeros((12, 150, 300), int)
    for block in plan.blocks((12, 1, 150, 300), 6):
        assert block.first // 6 == (block.first + block.count - 1) // 6
        seen[block.first : block.first + block.count, slice(*block.rows), slice(*block.columns)] += 1
        for kept, seen_, n in ((block.rows, block.seen_rows, 150), (block.columns, block.seen_columns, 300)):
            assert seen_[0] <= max(0, kept[0] - plan.halo) and seen_[0] % 64 == 0
            assert seen_[1] >= min(n, kept[1] + plan.halo)
    assert (seen == 1).all()


def test_memory_in_words():
    assert [as_bytes(size) for size in ("2GB", "500 MB", "1.5e9", 3e8, "1TB")] == [2e9, 5e8, 1.5e9, 3e8, 1e12]
    for size in ("much", "0", -1, "2PB2", "nan"):
        with pytest.raises(UserError, match="memory: got"):
            as_bytes(size)


def test_what_the_network_takes_is_measured():
    def answer(noisy):
        return (noisy.expand(-1, 10, -1, -1) + 1).sum(1, keepdim=True) * 2

    cost = Cost.of(answer, 1, 1, torch.zeros(1, 1, 32, 32))
    assert cost.computed == 4 * 12  # what it takes, ten planes and their sum


def test_reading_computing_and_writing_overlap_in_order():
    busy, most = {"read": 0, "write": 0}, []
    waiting = []

    def read(i):
        waiting.append(i)
        return i

    def compute(i, noisy):
        assert noisy == i
        most.append(len(waiting) - i)
        return 2 * i

    written = []
    assert list(stream([*range(6)], read, compute, lambda i, answer: written.append((i, answer)))) == [
        *range(6)
    ]
    assert written == [(i, 2 * i) for i in range(6)] and max(most) <= 2 and busy
    with pytest.raises(ZeroDivisionError):
        list(stream([1, 2, 3], read, compute, lambda *_: 1 / 0))


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_stopped_prediction_ends_with_the_same_bytes(tmp_path, name, stop, monkeypatch, caplog):
    pytest.importorskip("zarr")
    noisy = as_stack(np.random.default_rng(0).normal(100, 10, (3, 130, 200)).astype(np.float32))
    noisy.compression = "zlib" if name == "a.ome.tif" else None
    network, options = (
        denoiser(LightUNet(out_channels=2, width=8), MeanVariance()),
        dict(tile=64, device="cpu", chunks=64 if name == "a.zarr" else None),
    )
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole = predict(network, noisy, tmp_path / "whole" / name, **options)
    compute, calls = Prediction.compute, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "compute", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict(network, noisy, tmp_path / "stopped" / name, **options)
    assert not (tmp_path / "stopped" / name).exists()
    told = f".{name}.part; the same command resumes there, one with other settings replaces it"
    assert (told in caplog.text) == (stop > 1)  # of one block it is not known yet that it was written
    monkeypatch.setattr(Prediction, "compute", lambda *each: calls.append(1) or compute(*each))
    calls.clear()
    np.testing.assert_array_equal(predict(network, noisy, tmp_path / "stopped" / name, **options), whole)
    assert len(calls) in (36 - stop, 37 - stop)  # the last one was computed, but not written yet
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["a.tif", "a.ome.zarr"])
def test_parts_of_other_work_are_replaced(tmp_path, noisy, name, monkeypatch):
    """Also those of its further images, which this work has not."""
    pytest.importorskip("zarr")
    compute, calls = Prediction.compute, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return compute(*arguments)

    two, large = denoiser(LightUNet(out_channels=2, width=8), MeanVariance()), np.tile(noisy, (1, 4, 4))
    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "compute", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict(two, large, tmp_path / name, tile=64, chunks=64 if "zarr" in name else None)
    assert len(list(tmp_path.glob(".*.part"))) == 2 and (tmp_path / f".{name}.unfinished.json").exists()
    network = denoiser(LightUNet(width=8))
    np.testing.assert_array_equal(predict(network, noisy, tmp_path / name), predict(network, noisy))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_draws_do_not_depend_on_where_a_run_was_stopped_or_how_many_frames_go_at_once(noisy):
    sampler = FunctionSampler(lambda noisy: noisy + torch.randn_like(noisy))
    drawn = [predict(sampler, noisy, draws=2, device="cpu", memory=m) for m in ("1GB", "233MB")]
    np.testing.assert_array_equal(*drawn)
    assert (predict(sampler, noisy, draws=2, seed=1, device="cpu") != drawn[0]).any()


def test_a_ceiling_below_one_tile_is_one_line_and_nothing_is_written(tmp_path, noisy):
    with pytest.raises(UserError, match=r"memory: got 0\.01 GB, but the smallest tile needs"):
        predict(denoiser(LightUNet(width=8)), noisy, tmp_path / "a.tif", memory="10MB")
    assert not list(tmp_path.iterdir())


def test_a_network_that_sees_all_says_that_tiles_differ(noisy, caplog):
    big = np.tile(noisy[:1], (1, 4, 4))
    predict(denoiser(Whole()), big, device="cpu", tile=64)
    assert "receptive field of this network is larger" in caplog.text


def test_large_results_are_returned_as_they_are_opened(tmp_path, noisy, monkeypatch):
    monkeypatch.setattr("distill.prediction.predict.SMALL", 0)
    denoised = predict(denoiser(LightUNet(width=8)), noisy, tmp_path / "a.tif", device="cpu")
    assert isinstance(denoised, np.memmap)
    np.testing.assert_array_equal(denoised, read(tmp_path / "a.tif").pixels)


def test_every_map_has_a_file_of_its_own(tmp_path, noisy):
    zarr = pytest.importorskip("zarr")
    network = denoiser(LightUNet(out_channels=2, width=8), MeanVariance())
    predict(network, noisy.astype(np.uint16), tmp_path / "a.ome.zarr", dtype="input", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.zarr", "a_std.ome.zarr"]
    kinds = [zarr.open_group(path)["0"].dtype for path in sorted(tmp_path.iterdir())]
    assert kinds == [np.uint16, np.float32]
    assert json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
