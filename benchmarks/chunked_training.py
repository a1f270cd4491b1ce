"""Compares training on a compressed OME-Zarr with the same images in memory, in steps per second.

python benchmarks/chunked_training.py [--gigabytes 2] [--chunks 256 512 1024] [--cached 0.05] [--steps 600]

The store is written to TMPDIR and deleted afterwards. `--cached` is the share of its decoded chunks that may
stay in memory: 0.05 corresponds to 1 GB of 20 GB. The student is small and the sampler costs nothing, so that
reading matters as much as possible. Both kinds alternate, and the median counts. OMP_NUM_THREADS=1 leaves the
second of two cores to the loader; with a GPU it has all of them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import zarr
import zarr.codecs

from distill import train
from distill.hardware import keep_freed_memory
from samplers import FunctionSampler
from students import UNet

SIDE = 2048
WARM_UP = 20


def make_store(path: Path, gigabytes: float, chunk: int) -> None:
    """Photons of 16 different frames, turned and mirrored."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / 40
    drawn = [
        rng.poisson(80 + 60 * np.sin(y + i) * np.cos(x * (1 + i / 9))).astype(np.uint16) for i in range(16)
    ]
    frames = round(gigabytes * 1e9 / drawn[0].nbytes)
    axes = [{"name": "t", "type": "time"}, *({"name": n, "type": "space"} for n in "yx")]
    scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [image]}})
    array: Any = group.create_array(
        "0", shape=(frames, SIDE, SIDE), chunks=(1, chunk, chunk), dtype="uint16",
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    )  # fmt: skip
    for i in range(frames):
        array[i] = np.rot90(drawn[i % 16], i // 16)


def steps_per_second(images: Any, steps: int, memory: float) -> float:
    torch.manual_seed(0)
    times: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as out:
        train(
            images, FunctionSampler(lambda noisy: noisy), UNet(depth=2, filters=8), out=out,
            steps=0, refine_steps=WARM_UP + steps, validate_every=10**6, val_fraction=0.0, memory=memory,
            on_log=lambda row: times.setdefault(row["step"], time.perf_counter()),
        )  # fmt: skip
    return steps / (times[WARM_UP + steps] - times[WARM_UP])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--cached", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as `distill train` does
    memory = options.cached * options.gigabytes * 1e9
    for chunk in options.chunks:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.ome.zarr"
            make_store(path, options.gigabytes, chunk)
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            pixels = np.asarray(zarr.open_array(path / "0", mode="r"))
            pairs = [
                tuple(steps_per_second(images, options.steps, memory) for images in (pixels, path))
                for _ in range(options.repeats)
            ]
            whole, chunked = (median(each) for each in zip(*pairs, strict=True))
            print(
                f"chunks of {chunk}: {pixels.nbytes / 1e9:.2f} GB as {stored / 1e9:.2f} GB, "
                f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads: in memory {whole:.1f} steps/s, "
                f"from chunks {chunked:.1f}, ratio {chunked / whole:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
