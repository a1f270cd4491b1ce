"""Patches read ahead are those that would have been read in turn, also where a run stops and resumes."""

import itertools

import numpy as np
import pytest
import torch

from distill import UserError, train
from distill.images.chunks import CACHE, Chunked
from distill.images.sources import as_stack
from distill.images.stack import Stack
from distill.training.loader import loaded
from distill.training.patches import Patches, split
from samplers import FunctionSampler
from students import UNet


def patches(frames) -> Patches:
    return Patches(frames, split(frames, 0.0, 16, 0)[0], 16)


def test_batches_and_generator_are_those_without_threads(noisy):
    frames = as_stack(noisy).frames
    ahead, in_turn = np.random.default_rng(5), np.random.default_rng(5)
    with loaded(patches(frames), 4, ahead, range(8)) as batches:
        for batch in itertools.islice(batches, 40):
            assert batch.equal(patches(frames).sample(4, in_turn))
            assert ahead.bit_generator.state == in_turn.bit_generator.state


def chunked(pixels: np.ndarray, fail_at=None) -> Stack:
    def read(index):
        if index == fail_at:
            raise ValueError("checksum")
        return pixels[tuple(slice(i * c, i * c + c) for i, c in zip(index, (1, 16, 16), strict=True))].copy()

    return Stack(Chunked(pixels.shape, pixels.dtype, (1, 16, 16), read, lambda i: f"chunk {i}"), "TYX")


QUICK = dict(batch_size=4, patch_size=16, validate_every=3, device="cpu", precision="fp32", refine_steps=0)


def student(images, out, steps: int, **options) -> torch.Tensor:
    torch.manual_seed(0)
    sampler, network = FunctionSampler(lambda x: x), UNet(depth=1, filters=4)
    options = QUICK | dict(schedule="plateau", ema=0.5, refine_steps=steps) | options
    denoiser = train(images, sampler, network, out=out, steps=0, **options).denoiser
    return torch.cat([p.detach().flatten() for p in denoiser.parameters()])


def test_chunks_train_as_arrays_do_and_resume_exactly(noisy, tmp_path, monkeypatch):
    monkeypatch.setattr(CACHE, "limit", 16 * 16 * 4 * 5)
    monkeypatch.setattr("distill.training.loader.free_memory", lambda: 16 * 16 * 4 * 10)  # 5 of 36 chunks
    whole = student(noisy, tmp_path / "array", 6)
    assert student(chunked(noisy), tmp_path / "chunks", 6).equal(whole)
    student(chunked(noisy), tmp_path / "parts", 3)
    assert student(chunked(noisy), tmp_path / "parts", 6).equal(whole)


def test_memory_is_the_ceiling_of_decoded_chunks(noisy, tmp_path):
    limits = []
    options = dict(memory="3KB", on_log=lambda row: limits.append((CACHE.limit, CACHE.size)))
    student(chunked(noisy), tmp_path / "run", 6, **options)
    assert limits and all(limit == 3000 and 0 < size <= 3000 for limit, size in limits)
    with pytest.raises(UserError, match="memory: got 'much'; pass a size such as 2GB"):
        student(chunked(noisy), tmp_path / "none", 6, memory="much")
    assert not (tmp_path / "none").exists()


def test_a_damaged_chunk_stops_the_training_in_one_line(noisy):
    broken = chunked(noisy, fail_at=(2, 1, 1)).frames
    told = pytest.raises(UserError, match=r"chunk \(2, 1, 1\): cannot be read \(checksum\)")
    with loaded(patches(broken), 8, np.random.default_rng(0), range(8)) as batches, told:
        list(itertools.islice(batches, 99))


def test_batches_that_are_large_are_few(noisy, monkeypatch):
    monkeypatch.setattr("distill.training.loader.AHEAD_BYTES", 4 * 4 * 16 * 16 * 3)
    few = patches(as_stack(noisy).frames)
    places, planned = few.places, []
    monkeypatch.setattr(few, "places", lambda *given: planned.append(given) or places(*given))
    with loaded(few, 4, np.random.default_rng(0), range(8)) as batches:
        next(batches)
        assert len(planned) == 3
