"""Tests damaged model files: each must be refused in one line, or load without a change.

    python benchmarks/damaged_files.py --count 5000        (about 5 minutes on one core)

Flipped bits, cut, zeroed, doubled and shifted parts of a run's three files and of every kind of noise model;
and headers with one value replaced and a new checksum, as an attacker would do. "silent": the file loads with
a difference. "traceback": an exception that is not a UserError. "hang": more than 5 seconds of work.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import nn

from distill import UserError, load_denoiser, load_sampler, train
from distill.runs import checkpoint, tensors
from distill.runs.rebuild import describe
from losses import Quantiles
from samplers import (
    HDN,
    AutoregressiveNoise,
    CorrelatedNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    HistogramNoise,
    PhotonNoise,
    load_noise_model,
)
from students import UNet

LIMIT = 5.0  # seconds
WHOLE = "whole"  # as if it were not damaged
NOISE_MODELS = {
    "gaussian": GaussianNoise(gain=2.0, offset=5.0, min_variance=1.0, step=1.0, clip=(0.0, 255.0)),
    "photons": PhotonNoise(2.0, 5.0, 1.0, 3.0, 1.0),
    "correlated": CorrelatedNoise([[0.1, 1.0, 0.1]], gain=1.0, offset=2.0, min_variance=0.5),
    "histogram": HistogramNoise(np.eye(9).tolist(), 0.0, 255.0),
    "mixture": GaussianMixtureNoise([[0.0, 0.0], [1.0, 0.1], [0.0, 0.0]], 0.0, 255.0, 1.0, step=1.0),
    "autoregressive": AutoregressiveNoise("row", filters=4, dilations=[1, 2]),
}


def make_files(folder: Path) -> Path:
    """A run, and noise models beside it."""
    train_on(folder)
    for name, model in NOISE_MODELS.items():
        model.write(folder / f"{name}.npz")
    return folder


def train_on(folder: Path) -> None:
    """Trains, or resumes, for two steps."""
    noisy = np.random.default_rng(0).normal(200, 10, (4, 32, 32)).astype("f4")
    sampler = HDN(GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=16)
    train(noisy, sampler, UNet(1, 3, depth=1, filters=2), Quantiles(), folder, steps=1, refine_steps=1,
          batch_size=2, micro_batch=2, patch_size=16, device="cpu")  # fmt: skip


def content(path: Path) -> str:
    """All that is in a file, as its users get it; to be compared."""
    if path.name == "checkpoint.safetensors":
        weights, header = tensors.load(path, checkpoint.CHECKPOINT_HEADER)
        return tensors.digest(weights, header | {"settings": checkpoint.settings(header)})
    module: nn.Module
    if path.name == "student.safetensors":
        module = load_denoiser(path)
    else:
        module = load_sampler(path) if path.suffix == ".safetensors" else load_noise_model(path)
    return tensors.digest(module.state_dict(), {"of": describe(module)})


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """In one of the ways of disks and networks."""
    at, end = sorted(int(i) for i in rng.integers(0, len(data), 2))
    bits, length = bytearray(data), int(rng.integers(1, 64))
    bits[at] ^= 1 << int(rng.integers(8))
    early = bytearray(data)  # in the header, where most of what can go wrong lies
    early[int(rng.integers(min(4096, len(data))))] = int(rng.integers(256))
    ways = [bytes(bits)] * 4 + [bytes(early)] * 4 + [data[:at], data[:at] + data[end:], data + data[at:end]]
    ways += [data[:at] + bytes(length) + data[at + length :], data[:at] + data[at : at + length] + data[at:]]
    return ways[int(rng.integers(len(ways)))]


ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    -0.5,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    [1, 2],
    {"class": "os.system"},
)


def with_other_header(path: Path, rng: np.random.Generator) -> bytes:
    """One value of the header, anywhere in it, replaced or deleted; the checksum fits again."""
    weights, header = tensors.load(path)
    places = list(_places(header))
    inside, key = places[int(rng.integers(len(places)))]
    inside[key] = ODD[int(rng.integers(len(ODD)))]
    if isinstance(inside, dict) and rng.random() < 0.2:
        del inside[key]
    metadata = {"header": json.dumps(header), "sha256": tensors.digest(weights, header)}
    return safetensors.torch.save(weights, metadata)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in it, with every key or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)  # seconds of this process, however busy the machine is
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def outcome(use: Callable[[], str | None], sound: str | None) -> str:
    """refused, whole, silent, hang, or the exception that was no message to users."""
    started = time.process_time()
    try:
        with _in_time():
            found = use()
    except UserError:
        found = "refused"
    except ValueError as error:  # what a noise model finds wrong; the toolkit makes a message of it
        found = "refused" if str(error).count("\n") == 0 and ".npz" in str(error) else f"traceback: {error!r}"
    except Exception as error:
        found = "hang" if isinstance(error, TimeoutError) else f"traceback: {error!r}"
    else:
        found = WHOLE if found == sound else "silent"
    return "hang" if time.process_time() - started > LIMIT else found


def run(count: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Outcomes for each file, of `count` damages in all."""
    rng, found = np.random.default_rng(seed), {}
    with tempfile.TemporaryDirectory() as name:
        whole = make_files(Path(name) / "whole")
        work = Path(shutil.copytree(whole, Path(name) / "work"))
        files = [path for path in sorted(whole.iterdir()) if path.suffix in (".safetensors", ".npz")]
        jobs = [(path, "damaged") for path in files]
        jobs += [(path, "other header") for path in files if path.suffix == ".safetensors"]
        for i in range(count):
            path, kind = jobs[i % len(jobs)]
            other, sound = work / path.name, None
            if kind == "damaged":
                other.write_bytes(damaged(path.read_bytes(), rng))
                result = outcome(lambda other=other: content(other), content(path))
            else:
                other.write_bytes(with_other_header(path, rng))
                resumes = path.name == "checkpoint.safetensors"
                result = outcome(
                    lambda other=other, r=resumes: train_on(other.parent) if r else content(other), sound
                )
                result = "loaded" if result in (WHOLE, "silent") else result  # as its author wanted
            found.setdefault(f"{path.name}, {kind}", Counter())[result] += 1
            shutil.copy(path, other)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    found = run(options.count, options.seed)
    total: Counter[str] = Counter()
    for name, results in found.items():
        print(f"{name:40} {dict(results)}")
        total.update({result.partition(":")[0]: n for result, n in results.items()})
    print(f"{'all':40} {dict(total)}")


if __name__ == "__main__":
    main()
