"""Co-training of a posterior sampler and the student that learns from its draws (paper, section 4)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.hardware import Precision, autocast, choose_device
from distill.images.sources import Images, as_stack
from distill.images.statistics import spread, statistics
from distill.runs import checkpoint
from distill.runs.rebuild import describe
from distill.training.checks import check_arguments, check_networks
from distill.training.logs import Log, tensorboard_log
from distill.training.optimiser import Optimiser, Schedule
from distill.training.patches import Patches, split
from distill.training.resume import Progress, stop_signals
from distill.training.validation import validate
from losses import L2, Loss
from samplers import PosteriorSampler

PUBLISHED: dict[str, Any] = dict(
    refine_steps=0, batch_size=64, micro_batch=8, optimiser="Adamax", lr=3e-4, student_lr=3e-4,
    schedule="plateau", clip=None, ema=0.0, validate_every=400,
)  # fmt: skip
"""What the paper trained with: train(..., steps=200_000, **PUBLISHED)."""


@dataclass
class Run:
    """A finished training: its folder, the sampler in eval mode, the student that users keep."""

    path: Path
    sampler: PosteriorSampler
    denoiser: DirectDenoiser


def train(
    images: Images,
    sampler: PosteriorSampler,
    student: nn.Module,
    loss: Loss | None = None,
    out: str | Path = "runs/latest",
    *,
    steps: int = 3000,
    refine_steps: int = 1000,
    batch_size: int = 16,
    micro_batch: int = 16,
    patch_size: int = 64,
    draws: int | None = None,
    optimiser: str = "AdamW",
    lr: float = 2e-3,
    student_lr: float | None = None,
    schedule: Schedule = "cosine",
    clip: float | None = 5.0,
    ema: float = 0.999,
    val_fraction: float = 0.15,
    validate_every: int = 250,
    patience: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    compile: bool = False,
    tensorboard: bool = False,
    on_log: Log | None = None,
    axes: str | None = None,
) -> Run:
    """Trains `student` to predict, in one pass, what averaging draws of `sampler` would give.

    The first `steps` co-train both networks on every batch. Then the sampler is frozen in eval mode
    and the student goes on for `refine_steps`. A sampler that is not trainable is frozen throughout.

    Args:
        images: a TIFF, an array, or a Stack, in raw counts.
        loss: which functional of the posterior to learn; L2, the mean, unless told.
        out: folder of the run; a run that was stopped there goes on from its last checkpoint.
        batch_size: patches per update, computed `micro_batch` at a time.
        draws: draws per patch that the student learns from; unless told, one, or what the loss
            needs, or what the sampler has for free.
        optimiser: name of a class in torch.optim, one for each network.
        lr: of the sampler.
        student_lr: half of lr unless told: a student without normalisation bears no more.
        clip: largest gradient norm; None for no clipping.
        ema: decay of the average of the student's weights, which is what is kept; 0 for none.
        val_fraction: share of the frames (of one frame: its area) that is held out.
        validate_every: steps between validations, each with a checkpoint and a preview picture.
        patience: stop after so many validations without a better student; None never does.
        seed: of patches, draws and held-out regions; networks have their initial weights already, from
            torch.manual_seed before they were made (the command line's seed is of these too).
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        compile: torch.compile both networks: minutes at first, faster afterwards.
        tensorboard: event files in `out` too, of what metrics.jsonl has.
        on_log: called with every row of metrics.jsonl, a dictionary of numbers.
        axes: the letters of the images' dimensions, of STCZYX, where the file does not say.

    Raises:
        UserError: what cannot work, before anything is written; or a loss that is not finite.
    """
    loss = loss or L2()
    draws = max(loss.min_draws, sampler.free_draws) if draws is None else draws
    student_lr = lr / 2 if student_lr is None else student_lr
    settings = {k: v for k, v in locals().items() if k not in _NOT_SETTINGS}
    check_arguments(settings, loss)
    device, total, out = choose_device(device), steps + refine_steps, Path(out)
    autocast(device, precision)  # refuses an unknown precision

    # Data: random patches of raw counts, with their mean and standard deviation.
    stack = as_stack(images, axes)
    mean, std = (torch.from_numpy(v) for v in statistics(stack))
    regions, held_out = split(stack.frames, val_fraction, patch_size, seed)
    with checks_of(stack.name):
        seen = sampler.beside(stack.frames)
    patches = Patches(seen, regions, patch_size)
    some = torch.from_numpy(stack.frames[spread(len(stack.frames), 8)].astype(np.float32))
    validation = None
    if len(held_out):
        validation = Patches(seen, held_out, patch_size).grid(64).to(device)

    # Networks: the sampler, the student, and the running average of the student.
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    co_steps = steps if sampler.trainable else 0
    if co_steps:
        with checks_of(stack.name):
            sampler.prepare(some, mean, std)  # a sampler that is already trained keeps its statistics
    denoiser = DirectDenoiser(student, loss, channels=len(mean))
    denoiser.prepare(mean, std)
    with checks_of(stack.name):
        loss.prepare(denoiser.standardise(some))
    for module in (sampler, denoiser):
        module.to(device, memory_format=torch.channels_last)
    check_networks(sampler, denoiser, patches.sample(2, np.random.default_rng(0)).to(device), draws)
    average = AveragedModel(denoiser, avg_fn=_warm_ema(ema))

    # One optimiser for each network; the sampler has none where it is frozen from the start.
    optimise_student = Optimiser("student", denoiser, optimiser, student_lr, schedule, total, clip)
    optimisers = [optimise_student]
    if co_steps:
        optimise_sampler = Optimiser("sampler", sampler, optimiser, lr, schedule, steps, clip)
        optimisers.append(optimise_sampler)
    settings["data"] = [*stack.frames.shape, *mean.flatten().tolist(), *std.flatten().tolist()]
    settings["networks"] = [describe(m) for m in (sampler, student, loss)]
    modules = {"sampler": sampler, "student": denoiser, "average": average}
    logs = ([tensorboard_log(out)] if tensorboard else []) + ([on_log] if on_log else [])
    progress = Progress(out, settings, modules, optimisers, generator, logs)
    progress.resume()
    sampler_step, student_pass = sampler.training_step, denoiser.predict
    if compile:
        sampler_step, student_pass = torch.compile(sampler_step), torch.compile(student_pass)

    started = time.monotonic() - progress.seconds
    bar = tqdm(total=total, initial=progress.step, unit="step", smoothing=0.1)
    with bar, stop_signals() as stop:
        for step in range(progress.step + 1, total + 1):
            co_training = step <= co_steps
            sampler.train(co_training)
            loss.schedule((step - 1) / total)
            batch = patches.sample(batch_size, generator, augment=sampler.isotropic)
            for noisy in batch.to(device, memory_format=torch.channels_last).split(micro_batch):
                share = len(noisy) / batch_size
                # 1. Pass the noisy images to the sampler and draw possible clean images.
                with autocast(device, precision):
                    if co_training:
                        with checks_of(type(sampler).__name__):
                            sampler_loss, draw = sampler_step(noisy)  # the draw that the ELBO made
                        targets = draw.detach().unsqueeze(0)
                        if draws > 1:
                            targets = torch.cat([targets, sampler.sample(noisy, draws - 1)])
                    else:
                        targets = sampler.sample(noisy, draws)
                # 2. Update the sampler towards minimising its own loss.
                if co_training:
                    optimise_sampler.backward(sampler_loss, share)
                # 3. Pass the same images to the student.
                with autocast(device, precision):
                    prediction = student_pass(noisy[:, : len(mean)])
                # 4. Update the student towards minimising its distance to the draws.
                optimise_student.backward(loss(prediction, denoiser.standardise(targets)), share)
            row: dict[str, Any] = {"step": step}
            active = optimisers if co_training else [optimise_student]
            row |= {f"{each.name}_loss": each.check(step) for each in active}
            for each in active:
                each.step()
            average.update_parameters(denoiser)
            # 5. Repeat until convergence.
            progress.step, progress.seconds = step, time.monotonic() - started
            validating = step % validate_every == 0 or step == total
            if validating and validation is not None:
                with autocast(device, precision):
                    row |= validate(sampler, average.module, validation, seed, out / "preview.png")
                for each in optimisers:
                    each.validated(row.get(f"val_{each.name}_loss"))
                progress.validated(row["val_student_loss"])
            if validating or step % 10 == 0:
                row |= {"lr": optimise_student.lr, "seconds": round(progress.seconds, 2)}
                progress.log(row)
                bar.set_description("co-train" if co_training else "student", refresh=False)
                bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if _shown(k)}, refresh=False)
            bar.update()
            if validating or stop:
                progress.save()
            if stop:
                raise KeyboardInterrupt
            if patience and progress.stale >= patience:
                break

    run = Run(out, sampler.eval(), average.module.eval())
    checkpoint.save_sampler(out / "sampler.safetensors", run.sampler)
    checkpoint.save_denoiser(out / "student.safetensors", run.denoiser)
    return run


_NOT_SETTINGS = (
    "images",
    "sampler",
    "student",
    "loss",
    "out",
    "device",
    "precision",
    "compile",
    "tensorboard",
    "on_log",
)


def _warm_ema(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """An average that spans a tenth of the steps so far until it reaches its decay: no start bias."""

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

    return average


def _shown(key: str) -> bool:
    return key in ("sampler_loss", "student_loss", "psnr_to_draws")


