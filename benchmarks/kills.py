"""Kills commands at random moments and runs them again: is the result the same as without the kills?

    python benchmarks/kills.py --kills 50     train, cache, evaluate, predict, and in tiles to tif, zarr
    python benchmarks/kills.py --only train --kills 200 --inside 0.25

Every trial kills one command by SIGKILL one to three times before it can finish: at a random time or, for a
share of the kills, while a file is written, when half of it is written, or all of it but before it is
renamed. The final folder must have the same files with the same bytes as without kills, except measured times
and memory. Linux only: each command runs in a fork, which saves the imports.
"""

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  imported here, not once in every fork
import numpy as np
import skimage.metrics  # noqa: F401
import torch
import torch._dynamo
import yaozarrs  # noqa: F401
import zarr.codecs  # noqa: F401

from distill import cache_draws, evaluate, files, predict, train
from distill.images import targets
from distill.plots import curves  # noqa: F401
from distill.runs.tensors import load
from samplers import HDN, GaussianNoise
from students import UNet

MEASURED = {"seconds", "seconds_per_image", "memory_mb"}
LOOSE = (".svg", ".md")  # they show measured times
targets.SAVE_SECONDS = 0.02  # else these, which take a second, would always begin anew
NOISY = np.random.default_rng(0).normal(200, 20, (4, 32, 32)).astype(np.float32)

LARGE = np.random.default_rng(0).normal(200, 20, (2, 192, 192)).astype(np.float32)


def train_tiny(out: Path) -> None:
    torch.manual_seed(0)
    sampler = HDN(GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=16)
    train(NOISY, sampler, UNet(depth=2, filters=4), out=out / "run", steps=6, refine_steps=6, batch_size=4,
          patch_size=16, validate_every=2, device="cpu")  # fmt: skip


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "train": lambda run, out: train_tiny(out),
    "cache": lambda run, out: cache_draws(run, NOISY, out, draws=24, device="cpu"),
    "evaluate": lambda run, out: evaluate(run, NOISY, NOISY[0] + 1, out, draws=[1, 60], device="cpu"),
    "predict": lambda run, out: predict(run, NOISY, out / "a.tif", draws=20, overwrite=True, device="cpu"),
    "tif": lambda run, out: predict(run, LARGE, out / "a.tif", tile=64, overwrite=True, device="cpu"),
    "zarr": lambda run, out: predict(run, LARGE, out / "a.zarr", tile=64, chunks=64, overwrite=True,
                                     device="cpu"),
}  # fmt: skip

WRITES = {"train": 14, "cache": 6, "evaluate": 30, "predict": 1, "tif": 5, "zarr": 30}  # files, about


def in_fork(work: Callable[[], Any], kill_after: float = 1e9, kill_at_write: int = 0) -> bool:
    """Whether the work ended; it is killed after some seconds, or inside its n-th writing of a file."""
    if not (pid := os.fork()):
        sys.stderr = io.StringIO()  # progress bars
        torch.set_num_threads(1)
        kill_inside_a_write(kill_at_write)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    ends = time.monotonic() + kill_after
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError("the command failed")
            return os.WIFEXITED(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def kill_inside_a_write(n: int) -> None:
    """In the n-th file from now: n odd for one that is half written, even for one without its name yet."""
    writes, replace = [], os.replace

    def counted(part: Path, path: Path) -> None:
        writes.append(path)
        if len(writes) == n:
            os.truncate(part, os.path.getsize(part) // (1 + n % 2))
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    files.os.replace = counted


def content(path: Path) -> Any:
    """What must be equal of a file."""
    if path.suffix == ".safetensors":
        tensors, header = load(path)
        return {k: v.numpy().tobytes() for k, v in tensors.items()}, unmeasured(header)
    if path.suffix == ".jsonl":
        return [unmeasured(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        heading, *lines = [line.split(",") for line in path.read_text().splitlines()]
        return [unmeasured(dict(zip(heading, line, strict=True))) for line in lines]
    return None if path.suffix in LOOSE else path.read_bytes()


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in MEASURED}


def contents(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): content(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def trials(run: Path, name: str, kills: int, inside: float, seed: int = 0) -> tuple[int, int, list[str]]:
    """(kills, those inside a write, what was not as in an undisturbed command on the finished run)."""
    chance, done, written, wrong = random.Random(seed), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        started = time.monotonic()
        in_fork(lambda: COMMANDS[name](run, whole))
        seconds, expected = time.monotonic() - started, contents(whole)
        trial = 0
        while done < kills:
            out = Path(folder) / f"{trial}"
            out.mkdir()
            ended = False
            for _ in range(min(chance.randint(1, 3), kills - done)):
                at_write = chance.randint(1, WRITES[name]) if chance.random() < inside else 0
                after = 1e9 if at_write else chance.uniform(0, seconds)
                ended = in_fork(lambda: COMMANDS[name](run, out), after, at_write)  # noqa: B023
                done, written = done + (not ended), written + (not ended and at_write > 0)
                if ended:
                    break
            if not ended and not in_fork(lambda: COMMANDS[name](run, out)):  # noqa: B023
                wrong.append(f"{name} {trial}: did not end")
            found = contents(out)
            differ = [
                key for key in expected.keys() | found.keys() if expected.get(key, 0) != found.get(key, 0)
            ]
            wrong += [f"{name} {trial}: {key}" for key in differ]
            print("".join(f"{name} {trial}: {key}\n" for key in differ), end="", flush=True)
            trial += 1
    return done, written, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument(
        "--inside", type=float, default=0.25, help="share of them that hit a file half-written"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        in_fork(lambda: train_tiny(Path(folder)))
        for name in chosen.only:
            began, run = time.monotonic(), Path(folder) / "run"
            kills, inside, wrong = trials(run, name, chosen.kills, chosen.inside, chosen.seed)
            print(f"{name:9} {kills} kills, {inside} of them inside a write, {len(wrong)} differences, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
            failures += wrong
    print("\n".join(failures) or "all as if undisturbed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
