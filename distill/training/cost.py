"""Measures what the student costs in training and saves in prediction (paper, section 5)."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from distill.errors import UserError
from distill.files import check_folder, write_text
from distill.hardware import Hardware, Precision, synchronize, working_memory
from distill.images.conditions import seen_by
from distill.images.sources import Images, as_stack
from distill.images.statistics import SIDE, some_frames
from distill.limits import check_limits
from distill.runs import checkpoint, tensors
from distill.training.optimizer import Optimizer
from distill.training.patches import Patches, split
from distill.training.self_supervision import camera_of, split_risk
from distill.training.steps import Learn, Teach
from samplers import StabilizedSampler
from samplers.noise.split import LightSplit

DRAWS = 1000  # the paper compares one pass with this many draws


@dataclass(frozen=True)
class Cost:
    """Times in seconds and memory in MB on one machine. A step is one update with `batch_size` patches."""

    device: str
    sampler_step: float  # one step of the sampler alone
    both_step: float  # one step of the sampler and its student
    student_step: float  # one step of the student beside the finished sampler
    sampler_memory: float  # in addition to weights, gradients and optimizer states
    both_memory: float
    extra_training: float  # time that the student added to the run
    seconds_per_draw: float  # one draw of one frame
    seconds_per_pass: float  # one pass of the student on one frame
    break_even: float  # frames after which the student saved more time than it cost, at 1000 draws each

    def __str__(self) -> str:
        return (
            f"A step takes {self.sampler_step:.3f} s for the sampler alone, {self.both_step:.3f} s with its "
            f"student ({self.both_step / self.sampler_step:.2f}x), {self.student_step:.3f} s for the student "
            f"on the finished sampler; memory {self.sampler_memory:.0f} MB alone, {self.both_memory:.0f} MB "
            f"with the student.\nThe student added {self.extra_training:.0f} s to this run; a draw of one "
            f"frame takes {self.seconds_per_draw:.3f} s, the student {self.seconds_per_pass:.3f} s: it has "
            f"paid for itself after {self.break_even:.2g} frames, compared with {DRAWS} draws of each "
            f"({self.device})."
        )


def training_cost(
    run: str | os.PathLike[str],
    noisy: Images,
    *,
    repeats: int = 5,
    device: str | None = None,
    precision: Precision = "auto",
    axes: str | None = None,
    trust: str | Sequence[str] = (),
    conditions: Images | None = None,
) -> Cost:
    """Measures copies of a run's networks with the run's settings and writes its cost.txt for `report`.

    Args:
        run: a run or its folder, with its checkpoint.
        noisy: images like those that the run was trained on.
        repeats: measured steps of each kind. The fastest one counts, because other work of the machine only
            adds time.
        device: "cpu", "cuda", "cuda:1" or "mps". Default: the best one of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        axes: letters of the images' dimensions, of STCZYX. Default: the axes in the file.
        trust: your own modules that the run's files may import classes from. Default: none.
        conditions: conditions of the images, see `predict`. Default: none.

    Raises:
        UserError: if the run's sampler was not trained together with the student.
    """
    check_limits(locals())
    check_folder(run)
    settings = checkpoint.settings(
        tensors.load(Path(run) / "checkpoint.safetensors", checkpoint.CHECKPOINT_HEADER)[1]
    )
    sampler = copy.deepcopy(checkpoint.load_sampler(run, trust=trust))
    denoiser = copy.deepcopy(checkpoint.load_denoiser(run, trust=trust))
    if not (sampler.trainable and settings["steps"]):
        raise UserError(f"{run}: its sampler was not trained with the student; pass a run that co-trained")
    hardware = Hardware(device, precision).for_training(denoiser.dims)
    place = hardware.device
    sampler, denoiser = sampler.to(place), denoiser.to(place)
    stack = seen_by(denoiser, str(run), as_stack(noisy, axes), conditions)
    frames = stack.frames
    micro = min(settings["micro_batch"], settings["batch_size"])
    passes = settings["batch_size"] / micro
    whole, _ = split(frames, 0.0, settings["patch_size"], 0)
    batch = Patches(frames, whole, settings["patch_size"]).sample(micro, np.random.default_rng(0)).to(place)
    optimize_sampler, optimize_student = (
        Optimizer("", module, settings["optimizer"], 0.0, "cosine", 1, settings["clip"])
        for module in (sampler, denoiser)
    )

    if isinstance(sampler, StabilizedSampler):  # a file does not store the noise of the images
        few = torch.from_numpy(some_frames(stack, 8, SIDE)).to(place)
        sampler.light = LightSplit.fit(few, sampler.noise_model)
    light = getattr(sampler, "light", None)
    own_share = settings.get("self_supervised", 0.0)
    risk = split_risk(denoiser, light, getattr(sampler, "noise_model", None)) if own_share else None
    camera = camera_of(sampler, denoiser, light)
    teach = Teach(sampler, 0 if own_share == 1 else 1 if camera else settings["draws"])
    learn = Learn(denoiser, denoiser.loss, risk, own_share, camera)

    def update(train_sampler: bool, train_student: bool) -> None:
        """One update on one micro-batch, like a step of `train`."""
        sampler.train(train_sampler)
        with hardware.autocast():
            targets, sampler_loss = teach(batch)
        if sampler_loss is not None:
            optimize_sampler.backward(sampler_loss, 1.0)
            optimize_sampler.step()
        if train_student:
            with hardware.autocast():
                student_loss = learn(batch, targets)
            optimize_student.backward(student_loss, 1.0)
            optimize_student.step()

    kinds = {"sampler": (True, False), "both": (True, True), "student": (False, True)}
    steps = {kind: passes * _fastest(partial(update, *what), repeats, place) for kind, what in kinds.items()}
    memory = {kind: working_memory(partial(update, *kinds[kind]), place) for kind in ("sampler", "both")}
    sampler.eval()
    denoiser.eval()
    image = torch.from_numpy(np.array(frames[:1], np.float32)).to(place)
    with torch.inference_mode(), hardware.autocast():
        per_draw = _fastest(lambda: list(sampler.draws(image, 3)), repeats, place) / 3  # encodes once for all
        per_pass = _fastest(lambda: denoiser(image), repeats, place)
    extra = (
        settings["steps"] * (steps["both"] - steps["sampler"]) + settings["refine_steps"] * steps["student"]
    )
    cost = Cost(
        str(place), steps["sampler"], steps["both"], steps["student"], memory["sampler"], memory["both"],
        extra, per_draw, per_pass, extra / max(DRAWS * per_draw - per_pass, 1e-12),
    )  # fmt: skip
    write_text(Path(run) / "cost.txt", f"{cost}\n")
    return cost


def _fastest(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)
