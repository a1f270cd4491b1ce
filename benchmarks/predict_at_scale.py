"""Measures prediction of images larger than memory: peak memory, throughput, time per megapixel.

    python benchmarks/predict_at_scale.py memory --gigabytes 20
    python benchmarks/predict_at_scale.py flatness --megapixels 1 10 100 1000
    python benchmarks/predict_at_scale.py kills --kills 15

memory: for an OME-Zarr of that size with --memory 1GB, the peak of resident memory above that of the loaded
program, and the time relative to pure computation, which is the same network on one block in memory.
flatness: time per megapixel of one frame. kills: kills the writing of TIFF and Zarr at random moments, and
resumes it.

The images repeat noisy tiles. They are written to TMPDIR and deleted afterwards. Times are CPU seconds of
all threads; OMP_NUM_THREADS=1 keeps other programs on the same cores from changing them much. Linux.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import kills
import numpy as np
import torch
import zarr
import zarr.codecs

from distill import predict, train
from distill.hardware import keep_freed_memory, working_memory
from distill.prediction.blocks import Prediction
from samplers import FunctionSampler
from students import LightUNet

CHUNK, SIDE, TILES = 512, 4096, 16
OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def make_run(folder: Path, width: int) -> Path:
    """Of a student that has learned nothing yet: its time and its memory are those of a trained one."""
    torch.manual_seed(0)
    noisy = np.random.default_rng(0).poisson(100, (4, 64, 64)).astype(np.uint16)
    return train(noisy, FunctionSampler(lambda noisy: noisy), LightUNet(width=width), out=folder / "run",
                 steps=0, refine_steps=1, batch_size=1, val_fraction=0.0).path  # fmt: skip


def make_store(path: Path, frames: int, height: int, width: int) -> Path:
    """Chunk files are copies of a few, which is as fast as the disk."""
    axes = [{"name": "t", "type": "time"}, *({"name": n, "type": "space"} for n in "yx")]
    scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [image]}})
    array: Any = group.create_array(
        "0", shape=(frames, height, width), chunks=(1, CHUNK, CHUNK), dtype="uint16",
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    grid = itertools.product(range(frames), range(-(-height // CHUNK)), range(-(-width // CHUNK)))
    made: list[Path] = []
    for i, (t, y, x) in enumerate(grid):
        file = path / "0" / "c" / f"{t}" / f"{y}" / f"{x}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if len(made) < TILES:
            ramp = 100 + 50 * np.sin(np.arange(CHUNK) / 40 + i)
            whole = rng.poisson(ramp[:, None] * np.ones(CHUNK)).astype(np.uint16)
            zarr.create_array(path / "one", data=whole[None], chunks=(1, CHUNK, CHUNK),
                              compressors=array.compressors, overwrite=True)  # fmt: skip
            shutil.move(Path(path / "one", "c", "0", "0", "0"), file)
            shutil.rmtree(path / "one")
            made.append(file)
        else:
            shutil.copyfile(made[i % TILES], file)
    return path


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Of the blocks that are computed inside: the pixels seen, the time that it takes, and the largest."""
    seen, compute = {"pixels": 0, "seconds": 0.0, "largest": None}, Prediction.compute

    def noted(job: Prediction, *given: Any) -> Any:
        began = time.perf_counter()
        answer = compute(job, *given)
        seen["seconds"] += time.perf_counter() - began
        seen["pixels"] += given[-1].numel()
        if seen["largest"] is None or given[-1].numel() > seen["largest"][0]:
            seen["largest"] = given[-1].numel(), lambda: compute(job, *given)
        return answer

    with mock.patch.object(Prediction, "compute", noted):
        yield seen


def cpu_seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    began = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - began) / repeats


def measure_memory(folder: Path, options: argparse.Namespace) -> None:
    run = make_run(folder, options.width)
    frames = max(1, round(options.gigabytes * 1e9 / (2 * SIDE * SIDE)))
    store = make_store(folder / "noisy.ome.zarr", frames, SIDE, SIDE)
    stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / 1e9
    keep_freed_memory()
    small = make_store(folder / "small.ome.zarr", 1, CHUNK, CHUNK)
    predict(run, small, folder / "small.out.ome.zarr", **OPTIONS)  # which loads what the program needs
    times: dict[str, float] = {}

    def work() -> None:
        began = time.perf_counter()
        times["cpu"] = cpu_seconds(
            lambda: predict(run, store, folder / "out.ome.zarr", memory=options.memory, **OPTIONS)
        )
        times["wall"] = time.perf_counter() - began

    with watched() as seen:
        peak = working_memory(work, torch.device("cpu"))
    pixels, again = seen["largest"]
    pure = cpu_seconds(again, options.repeats) / pixels * seen["pixels"]
    total = frames * SIDE * SIDE
    print(
        f"{2e-9 * total:.2f} GB ({stored:.2f} GB compressed), --memory {options.memory}, LightUNet(width="
        f"{options.width}), blocks of up to {pixels / 1e6:.2f} Mpx: peak {peak:.0f} MB above the loaded "
        f"program; "
        f"{times['cpu'] / total * 1e6:.3f} CPU s/Mpx, {1e-6 * total / times['cpu']:.2f} Mpx per CPU s, "
        f"pure compute {pure / times['cpu']:.3f} of it; it computed in {seen['seconds'] / times['wall']:.3f} "
        f"of the time; {seen['pixels'] / total:.3f} pixels seen for each"
    )


def measure_flatness(folder: Path, options: argparse.Namespace) -> None:
    run = make_run(folder, options.width)
    keep_freed_memory()
    for megapixels in (0.25, *options.megapixels):
        side = round((megapixels * 1e6) ** 0.5)
        store, out = make_store(folder / "noisy.ome.zarr", 1, side, side), folder / "out.ome.zarr"
        with watched() as seen:
            taken = cpu_seconds(lambda: predict(run, store, out, memory=options.memory, **OPTIONS))  # noqa: B023
        if megapixels != 0.25:  # the first, which loads what the program needs
            print(f"{side**2 / 1e6:8.1f} Mpx: {taken / side**2 * 1e6:.3f} CPU s/Mpx, "
                  f"{seen['pixels'] / side**2:.3f} pixels seen for each", flush=True)  # fmt: skip
        shutil.rmtree(store)
        shutil.rmtree(out)


def measure_kills(folder: Path, options: argparse.Namespace) -> None:
    kills.in_fork(lambda: kills.train_tiny(folder))
    for name in ("tif", "zarr"):
        done, inside, wrong = kills.trials(folder / "run", name, options.kills, inside=0.5)
        print(f"{name}: {done} kills, {inside} of them inside a write, {len(wrong)} differences", flush=True)
        if wrong:
            sys.exit("\n".join(wrong))


MODES = {"memory": measure_memory, "flatness": measure_flatness, "kills": measure_kills}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of uint16 pixels")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--kills", type=int, default=15, help="of each format")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--width", type=int, default=16, help="of the LightUNet")
    parser.add_argument("--repeats", type=int, default=5, help="of pure compute")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        MODES[options.mode](Path(folder), options)


if __name__ == "__main__":
    main()
