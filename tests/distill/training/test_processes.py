"""Two processes train as one does with the same batches. This file is also the script that they run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill import UserError, load_denoiser, load_sampler, train
from distill.runs.tensors import load
from distill.training.processes import Processes
from losses import L2
from samplers import HDN, FunctionSampler, GaussianNoise, StabilizedSampler
from samplers.noise import split
from samplers.noise.split import LightSplit
from students import StabilizedUNet, UNet

pytestmark = pytest.mark.slow
QUICK = dict(batch_size=8, micro_batch=2, patch_size=16, validate_every=2, device="cpu", precision="fp32")


def images() -> np.ndarray:
    y, x = np.mgrid[:48, :40] / 8
    blobs = 200 + 60 * np.sin(y)[None] * np.cos(x + np.arange(4)[:, None, None])
    return (blobs + np.random.default_rng(0).normal(0, 10, blobs.shape)).astype(np.float32)


def hdn(dropout: float = 0.2, warmup: int = 0) -> HDN:
    noise = GaussianNoise(10.0)
    return HDN(noise, levels=2, latents=2, filters=4, blocks=1, dropout=dropout, patch_size=16,
               kl_warmup=warmup)  # fmt: skip


def blurred(noisy: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(noisy, 3, 1, 1, count_include_pad=False)


def interrupted(work, at: int, action):
    """`work`, which does `action` first when the second process calls it the `at`-th time."""
    calls = []

    def call(*arguments):
        calls.append(1)
        if len(calls) == at and os.environ.get("RANK") == "1":
            action()
        return work(*arguments)

    return call


def same(out: Path) -> None:
    """Trainings without random draws, so that one process and two can be compared number by number."""
    torch.manual_seed(0)  # of the initial weights
    draws, light, shares = torch.randn_like, LightSplit.forward, split.SHARES
    torch.randn_like, LightSplit.forward = torch.zeros_like, lambda _, noisy, share: (noisy + 5, noisy - 5)
    split.SHARES = 0.5, 0.5
    # A bias in front of batch normalisation has no gradient but rounding errors. Adam would scale these up to
    # its rate; the running means follow with a delay, and validation losses differ by 1e-3.
    sgd, uneven = QUICK | dict(optimizer="SGD"), QUICK | dict(batch_size=5)
    hdn_without_dropout, frozen = hdn(dropout=0.0), FunctionSampler(blurred)
    unets = [UNet(depth=2, filters=4) for _ in range(2)]
    train(images(), hdn_without_dropout, unets[0], L2(), out / "hdn", steps=4, refine_steps=2, **sgd)
    train(images(), frozen, unets[1], L2(), out / "frozen", steps=0, refine_steps=4, **uneven)
    sampler, student = StabilizedSampler(GaussianNoise(10.0)), StabilizedUNet()
    train(images(), sampler, student, L2(), out / "stabilized", steps=4, refine_steps=2, **QUICK)
    torch.randn_like, LightSplit.forward, split.SHARES = draws, light, shares


def random(out: Path) -> None:
    torch.manual_seed(0)
    sampler = hdn(warmup=40)
    train(images(), sampler, UNet(depth=2, filters=4), out=out, steps=6, refine_steps=2, **QUICK)


def stopped(out: Path) -> None:
    torch.manual_seed(0)
    sampler = hdn(warmup=40)
    step, stop = sampler.training_step, lambda: signal.raise_signal(signal.SIGTERM)
    sampler.training_step = interrupted(step, 5, stop)  # two micro-batches a step: in the third
    train(images(), sampler, UNet(depth=2, filters=4), out=out, steps=6, refine_steps=2, **QUICK)


def budget(out: Path) -> None:
    train(images(), hdn(), UNet(depth=2, filters=4), out=out, budget="2s", **QUICK)


def finished(out: Path) -> None:
    """All that end by themselves: starting two processes takes longer than their trainings."""
    same(out)
    random(out / "random")
    budget(out / "budget")


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def broken(out: Path) -> None:
    sampler = FunctionSampler(interrupted(blurred, 8, full_disk))  # one call of each step, after some checks
    train(images(), sampler, UNet(depth=2, filters=4), out=out, steps=0, refine_steps=20,
          **(QUICK | dict(validate_every=1)))  # fmt: skip


def launch(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Two processes that run this file, or what the arguments name."""
    launcher = launcher or ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [sys.executable, "-m", *launcher, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(out: Path) -> dict[str, torch.Tensor]:
    """Weights and buffers of the finished networks."""
    found = {"sampler": load_sampler(out), "student": load_denoiser(out)}
    return {f"{role}.{k}": v.double() for role, each in found.items() for k, v in each.state_dict().items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of the runs of one process, and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    ended = launch(__file__, "finished", two)
    assert ended.returncode == 0, ended.stderr
    same(one)
    return one, two


@pytest.mark.parametrize("name", ["hdn", "stabilized", "frozen"])
def test_losses_and_networks_are_those_of_one_process(name, both):
    one, two = (rows(folder / name) for folder in both)
    assert [row.keys() for row in one] == [row.keys() for row in two] and len(one) >= 2
    for a, b in zip(one, two, strict=True):
        shared = [k for k in a if "loss" in k or "val" in k or k in ("psnr_to_draws", "lr", "step")]
        assert {k: b[k] for k in shared} == pytest.approx({k: a[k] for k in shared}, rel=1e-4), b["step"]
    if name != "frozen":  # a function cannot be stored
        one, two = (numbers(folder / name) for folder in both)
        assert all(torch.allclose(two[k], v, rtol=1e-3, atol=1e-4) for k, v in one.items())


def test_statistics_of_batch_normalisation_are_of_all_micro_batches_in_order(both):
    one, two = (load(folder / "hdn" / "checkpoint.safetensors")[0] for folder in both)
    statistics = [k for k in one if "running_" in k]
    assert statistics and all(torch.allclose(two[k], one[k], rtol=1e-3, atol=1e-5) for k in statistics)
    counters = [k for k in one if k.endswith(("num_batches_tracked", "sampler.steps"))]
    assert counters and all(two[k].equal(one[k]) for k in counters)


def test_a_run_of_two_is_not_resumed_by_one(both):
    before = (both[1] / "hdn" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a run with processes=2, but got 1; pass another --out"):
        train(images(), hdn(dropout=0.0), UNet(depth=2, filters=4), out=both[1] / "hdn", steps=9,
              refine_steps=2, optimizer="SGD", **QUICK)  # fmt: skip
    assert (both[1] / "hdn" / "checkpoint.safetensors").read_bytes() == before


def test_a_signal_to_one_stops_both_and_the_run_resumes_bit_for_bit(both, tmp_path):
    ended = launch(__file__, "stopped", tmp_path / "parts")
    assert ended.returncode and rows(tmp_path / "parts")[-1]["step"] == 2
    tensors, header = load(tmp_path / "parts" / "checkpoint.safetensors")
    assert header["step"] == 3 and header["settings"]["processes"] == 2
    assert not tensors["torch_rng"].equal(tensors["torch_rng.1"])
    assert launch(__file__, "random", tmp_path / "parts").returncode == 0
    whole, parts = numbers(both[1] / "random"), numbers(tmp_path / "parts")
    assert all(parts[k].equal(v) for k, v in whole.items())
    assert [row["step"] for row in rows(tmp_path / "parts")] == [2, 4, 6, 8]


def test_an_error_in_one_ends_both_and_leaves_a_whole_checkpoint(tmp_path):
    ended = launch(__file__, "broken", tmp_path)
    assert ended.returncode and ended.stderr.count("[Errno 28]") == 1
    _, header = load(tmp_path / "checkpoint.safetensors")
    assert 1 <= header["step"] < 20
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_a_budget_gives_all_processes_the_same_steps(both):
    _, header = load(both[1] / "budget" / "checkpoint.safetensors")
    assert header["step"] == header["settings"]["steps"] + header["settings"]["refine_steps"]


def test_the_command_line_says_each_thing_once(tmp_path):
    pytest.importorskip("accelerate")
    import tifffile

    tifffile.imwrite(tmp_path / "noisy.tif", images(), photometric="minisblack")
    torchrun = ("-m", "distill", "train", "--device", "cpu", "--steps", "1", "--refine_steps", "1")
    missing = launch(*torchrun, tmp_path / "none.tif")
    assert missing.returncode and missing.stderr.count("distill: ") == 1
    command = ("-m", "distill", "train", tmp_path / "noisy.tif", "--device", "cpu", "--out", tmp_path / "run",
               "--steps", "1", "--refine_steps", "1", "--patch_size", "16")  # fmt: skip
    accelerate = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
                  "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
    ended = launch(*command, launcher=accelerate)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done") == 1 and ended.stderr.count("error on held-out light") == 1


def test_fewer_patches_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match="batch_size: got 2 for 3 processes, must be at least 3"):
        Processes(2, 8)
    assert Processes(8, 2).part == slice(0, 2)


if __name__ == "__main__":
    torch.manual_seed(0)
    from distill.__main__ import _log_to_stderr

    _log_to_stderr()
    work = {"finished": finished, "random": random, "stopped": stopped, "broken": broken}[sys.argv[1]]
    work(Path(sys.argv[2]))
