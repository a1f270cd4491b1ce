"""Co-training of a posterior sampler and the student that learns from its draws (paper, section 4)."""

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from distill.denoiser import DirectDenoiser
from distill.errors import checks_of
from distill.files import check_folder
from distill.hardware import Hardware, Precision
from distill.images.conditions import check_conditions, condition_count, identity, viewed
from distill.images.context import plane_count
from distill.images.sources import Images, as_stack
from distill.images.statistics import statistics
from distill.limits import check_limits
from distill.memory import as_bytes
from distill.runs.checkpoint import save_run
from distill.runs.rebuild import describe
from distill.runs.run import Run
from distill.training.budget import Pace, Trial, planned_steps
from distill.training.checks import (
    check_arguments,
    check_draws,
    check_networks,
    common_dims,
    space,
    student_of,
)
from distill.training.defaults import default_length, default_rates, starts_trained
from distill.training.loader import loaded
from distill.training.logs import Log, Metrics, tensorboard_log
from distill.training.optimizer import Optimizer, Schedule, update
from distill.training.patches import Patches, orientations, split
from distill.training.preparation import prepare_networks, prepare_outputs
from distill.training.processes import Processes, joined
from distill.training.resume import State, check_resumable, resumed, stop_signals, stored_settings
from distill.training.self_supervision import (
    TURNS,
    Best,
    camera_of,
    follower,
    self_supervised_share,
    split_risk,
)
from distill.training.steps import Learn, Teach
from distill.training.validation import Validation
from distill.training.watch import Watch
from losses import L2, Loss
from samplers import PosteriorSampler
from samplers.noise.base import unchanged_by
from students.dimensions import channels_last, per_channel

PUBLISHED: dict[str, Any] = dict(
    refine_steps=0, batch_size=64, micro_batch=8, optimizer="Adamax", lr=3e-4, student_lr=3e-4,
    schedule="plateau", clip=None, ema=0.0, validate_every=400,
)  # fmt: skip
"""Settings of the paper, for train(..., steps=200_000, **PUBLISHED)."""


@joined()
def train(
    images: Images,
    sampler: PosteriorSampler,
    student: nn.Module,
    loss: Loss | None = None,
    out: str | Path = "runs/latest",
    *,
    steps: int | None = None,
    refine_steps: int | None = None,
    budget: str | None = None,
    batch_size: int = 8,
    micro_batch: int = 8,
    patch_size: int = 64,
    draws: int | None = None,
    optimizer: str = "AdamW",
    lr: float | None = None,
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
    init: str | os.PathLike[str] = "pretrained",
    self_supervised: float | None = None,
    context: str | None = None,
    conditions: Images | None = None,
    memory: str | float | None = None,
) -> Run:
    """Trains `student` to predict in one pass what averaging draws of `sampler` would give.

    The first `steps` co-train both networks on every batch. Then the sampler is frozen in eval mode and the
    student is refined for `refine_steps`. A sampler that is not trainable is frozen from the start. Where the
    noise of pixels is correlated, the student of a StabilizedSampler sees draws that its noise model observes
    anew, in place of the images.

    Args:
        images: noisy images in raw counts: a path, an array or a Stack.
        sampler: posterior sampler that draws the student's targets. With dims=3 (HDN, DivNoising, or the
            attribute of your own) it draws volumes, from all planes along Z together.
        student: network that predicts in one pass, with the same dims.
        loss: functional of the posterior that the student learns. Default: L2, the mean.
        out: folder of the run. A stopped run in it resumes from its last checkpoint, also with more `steps`
            or `refine_steps` than before.
        steps: updates of both networks. Default: as many as fit into `budget`; 600 if only refine_steps is
            passed.
        refine_steps: updates of the student alone, with the finished sampler. Default: as many as fit into
            `budget`; 1000 if only steps is passed.
        budget: training time such as "10min", which determines steps and refine_steps. Default without these:
            "5min" for a sampler with trained initial weights, otherwise "15min".
        batch_size: patches per update, summed over all processes (docs/several-gpus.md).
        micro_batch: patches that a process computes at once; gradients are summed.
        patch_size: side of the patches, in pixels. Patches of volumes have half as many planes, or all.
        draws: draws per patch for the student. Default: the larger of loss.min_draws and
            sampler.free_draws, usually 1.
        optimizer: name of a class in torch.optim, for each network.
        lr: learning rate of the sampler. Default: its `learning_rate`, usually 2e-3 (published HDN:
            4e-4); a quarter for trained initial weights.
        student_lr: learning rate of the student. Default: half of `lr` (of 2e-3 without lr), because a
            student without normalisation layers diverges at higher rates; a quarter for trained initial
            weights, and less for fewer than 2 million pixels.
        schedule: "cosine" (warm-up, then a decay to zero) or "plateau" (as published).
        clip: largest norm of a network's gradient; None for no clipping.
        ema: decay of the running average of the student's weights, the final student; 0 for none.
        val_fraction: held-out share of the frames, or of the area of a single frame.
        validate_every: steps between validations, each with a checkpoint and a preview.
        patience: validations without a better student after which training stops. Default: never.
        seed: seed of patches, draws and the validation split. In Python it does not set the initial weights:
            call torch.manual_seed before you build the networks. The command line does that with the same
            seed.
        device: "cpu", "cuda", "cuda:1", "mps". Default: the best one of this machine.
        precision: "auto" (bf16 if the hardware has it), "bf16" or "fp32".
        compile: torch.compile both networks, for long runs.
        tensorboard: also write the metrics to event files in `out`.
        on_log: function that the main process calls with every row of metrics.jsonl, a dictionary of
            numbers. Like Ctrl-C, a KeyboardInterrupt from it stops the training with a checkpoint, also in a
            thread. Default: none.
        axes: letters of the images' dimensions, of STCZYX. Default: those in the file.
        init: initial weights: "pretrained" (those in the package, for networks that have some:
            StabilizedSampler and StabilizedUNet), "none", or a finished run, for instance of other images.
            With steps=0 the sampler of that run is used unchanged.
        self_supervised: share of the student's loss that is its error on a part of the image's own light
            (`SplitRisk`); the rest is its distance to draws. Default: 1 for L2, a StabilizedUNet and noise
            without correlation between pixels, because draws are only as good as their sampler; otherwise 0.
        context: neighbouring planes that both networks see in addition to the denoised plane: "T2" for two
            before and two after in time, "Z1" for one above and one below. They are further channels, the
            nearest first (0, -1, +1, -2, +2), mirrored at both ends. The sampler draws the denoised plane
            only, as HDN and DivNoising do with in_channels. Default: none.
        conditions: further images that both networks see, such as a mask of known pixels or a map of the
            noise level: one frame for all images, or one for each. They are the last input channels, in
            their own units; scale them to about 0 to 1. Default: none.
        memory: most memory of each process for decoded chunks of images that are read from a disk, such as
            2GB. Default: half of the free memory, at most 8.6 GB.

    Raises:
        UserError: before anything is written, for arguments, images or networks that cannot work; in
            training, for a loss or gradient that is not finite in 10 steps in a row. Single such steps are
            skipped, and counted as `skipped` in metrics.jsonl.
    """
    check_limits(locals())
    cached = None if memory is None else as_bytes(memory)
    processes = Processes(batch_size, micro_batch)
    loss, out = loss or L2(), check_folder(out, space(sampler, student))
    check_resumable(out)
    planes, began = as_stack(images, axes), time.monotonic()
    dims = common_dims(sampler, student)
    stack = viewed(planes, dims, context, conditions)
    maps = condition_count(stack)
    check_conditions(stack, type(sampler).__name__, sampler.conditions or maps)
    sampler.conditions = maps
    context = context and context.strip().upper()
    draws = max(loss.min_draws, sampler.free_draws) if draws is None else draws
    lr, student_lr = default_rates(lr, student_lr, sampler, student, init, stack.pixels.size)
    steps, refine_steps, budget = default_length(steps, refine_steps, budget, sampler, init)
    settings: dict[str, Any] = dict(
        steps=steps, refine_steps=refine_steps, budget=budget, batch_size=batch_size,
        micro_batch=micro_batch, patch_size=patch_size, draws=draws, optimizer=optimizer, lr=lr,
        student_lr=student_lr, schedule=schedule, clip=clip, ema=ema, val_fraction=val_fraction,
        validate_every=validate_every, patience=patience, seed=seed, axes=axes, processes=processes.count,
        context=context, conditions=identity(stack),
    )  # fmt: skip
    check_arguments(settings, loss)
    hardware = Hardware(processes.device(device), precision).for_training(dims)

    # Data: random patches of raw counts, and the mean and standard deviation that standardize them.
    mean, std = (torch.from_numpy(v).repeat(plane_count(context), 1, 1) for v in statistics(planes))
    mean, std = torch.cat([mean, torch.zeros(maps, 1, 1)]), torch.cat([std, torch.ones(maps, 1, 1)])
    mean, std = per_channel(mean, dims), per_channel(std, dims)
    regions, held_out = split(stack.frames, val_fraction, patch_size, seed)
    with checks_of(stack.name):
        frames = sampler.training_images(stack.frames)
    patches, unseen = Patches(frames, regions, patch_size), None
    if len(held_out):
        few = max(4, min(64 // math.prod(patches.sides[:-2]), 2**20 // math.prod(patches.sides)))
        unseen = Patches(frames, held_out, patch_size).grid(few).to(hardware.device)  # all in memory at once

    # Networks: the sampler, the student, and the running average of the student.
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    co_training = sampler.trainable and (steps > 0 or budget is not None)
    denoiser = student_of(sampler, student, loss, len(mean), context, maps)
    sampler.context, sampler.passes_per_step = context, processes.passes
    light, noise_model = prepare_networks(sampler, denoiser, stack, mean, std, init, co_training)
    co_training = co_training and sampler.trainable  # may depend on the estimated noise
    kept = unchanged_by([sampler, *([light.noise] if light else [])])  # these may, too
    allowed = orientations(*kept, denoiser.scale, dims)
    for module in (sampler, denoiser):
        channels_last(module.to(hardware.device))
    two = patches.sample(2, np.random.default_rng(0)).to(hardware.device)
    samples = check_draws(sampler, denoiser, two, draws)
    prepare_outputs(sampler, denoiser, patches, hardware)
    processes.share(sampler, denoiser)
    check_networks(denoiser, two, samples)
    average = Average(denoiser, ema)

    # Targets of the student: draws, or the image's own light. It may see draws through the camera.
    risk = split_risk(denoiser, light, noise_model)
    own_share = self_supervised_share(self_supervised, risk, loss)
    best = Best(denoiser, risk, unseen, seed) if risk and own_share and unseen is not None else None
    camera = camera_of(sampler, denoiser, light)
    following = follower(sampler, denoiser, camera)
    teach = Teach(sampler, 0 if own_share == 1 else 1 if camera else draws)
    learn = Learn(denoiser, loss, risk, own_share, camera)
    validation = None
    if unseen is not None:
        validation = Validation(sampler, average.module, unseen, seed, hardware, best, camera)

    # Length: the number of steps, or as many as fit into the rest of the budget.
    if budget:
        one = hardware.put(patches.sample(batch_size, np.random.default_rng(0), part=processes.part))
        check = validation.once if validation else lambda: None
        trial = Trial(teach, learn, one, micro_batch, hardware, check, validate_every, processes)
        stored = processes.on_main(stored_settings, out)
        fresh = not starts_trained(sampler if co_training else student, init)
        plan = planned_steps(budget, began, trial, co_training, fresh, stored)
        steps, refine_steps = processes.on_main(lambda: plan)  # the same for all, although times differ
        settings |= {"steps": steps, "refine_steps": refine_steps}
    co_steps, total = steps if co_training else 0, steps + refine_steps
    turns = {round(part * total) for part in TURNS} if following else set()
    if compile:
        teach, learn = torch.compile(teach), torch.compile(learn)

    # One optimizer for each network, but none for a sampler that is frozen from the start.
    optimize_student = Optimizer("student", denoiser, optimizer, student_lr, schedule, total, clip)
    optimizers = [optimize_student]
    if co_steps:
        optimize_sampler = Optimizer("sampler", sampler, optimizer, lr, schedule, steps, clip)
        optimizers.append(optimize_sampler)

    # State: all that a checkpoint holds, from which a stopped or a longer run resumes.
    settings["data"] = [*stack.frames.shape, *mean.flatten().tolist(), *std.flatten().tolist()]
    settings["self_supervised"] = own_share
    settings["networks"] = [describe(module) for module in (sampler, student, loss)]
    modules = {"sampler": sampler, "student": denoiser, "average": average}
    modules |= {"start": best.start, "best": best.module} if best else {}
    state = State(modules, optimizers, generator, processes, hardware.device)
    metrics = Metrics(out, ([tensorboard_log(out)] if tensorboard else []) + ([on_log] if on_log else []))
    processes.seed(seed)
    with (
        resumed(out, state, settings, metrics),
        loaded(patches, batch_size, generator, allowed, processes.part, cached) as batches,
        tqdm(total=total, initial=state.step, unit="step", smoothing=0.1, disable=not processes.main) as bar,
        stop_signals() as stop,
    ):
        watch, started = Watch(lr), time.monotonic() - state.seconds
        pace = Pace(budget, time.monotonic() - began, total) if budget else None
        while state.step < total and not (patience and state.stale >= patience):
            step = state.step + 1
            co_training = step <= co_steps
            sampler.train(co_training)
            loss.schedule((step - 1) / total)
            batch = hardware.put(next(batches))
            for noisy in batch.split(micro_batch):
                share = len(noisy) / batch_size  # so that gradients add up to the mean over the batch
                # 1. Pass the noisy images to the sampler and draw possible clean images.
                with hardware.autocast():
                    targets, sampler_loss = teach(noisy)
                # 2. Update the sampler towards minimising its own loss.
                if sampler_loss is not None:
                    optimize_sampler.backward(sampler_loss, share)
                # 3. Pass the same images to the student.
                with hardware.autocast():
                    student_loss = learn(noisy, targets)
                # 4. Update the student towards minimising its distance to the draws.
                optimize_student.backward(student_loss, share)
            active = optimizers if co_training else [optimize_student]
            processes.add_up(active)
            losses = update(active, step)  # {} for a skipped step: no network has changed
            if losses:
                average.update_parameters(denoiser)
            if following and step in turns:  # the next draws start from what the student has learned
                following.follow(average.module.backbone)
            row: dict[str, Any] = {"step": step} | losses | watch(step, losses, sampler.logged)
            if optimize_student.skipped:
                row["skipped"] = optimize_student.skipped
            # 5. Repeat until convergence, which the loss on held-out patches shows.
            state.step, state.seconds = step, time.monotonic() - started
            if pace and step >= co_steps and step % 10 == 0:  # as many steps as still fit into the budget
                total = processes.on_main(pace.last_step, step, state.seconds)
                bar.total = optimize_student.total = total
                settings["refine_steps"] = total - co_steps
            validating = step % validate_every == 0 or step == total
            if validating and validation:
                row |= processes.on_main(validation, out / "preview.png")
                # What the student is trained for: light that it has not seen, or draws.
                judged = row.get("val_split_error", row["val_student_loss"])
                optimize_student.validated(judged)
                if co_training:
                    optimize_sampler.validated(row["val_sampler_loss"])
                state.validated(judged)
            if validating or step % 10 == 0:
                row |= {"lr": optimize_student.lr, "seconds": round(state.seconds, 2)}
                if processes.main:
                    metrics.write(row)
                bar.set_description("co-train" if co_training else "student", refresh=False)
                bar.set_postfix({k: f"{row[k]:.3f}" for k in _SHOWN if k in row}, refresh=False)
            bar.update()
            stopping = processes.any(stop or metrics.interrupted)
            if validating or stopping:
                state.save(out, settings)
            if stopping:
                raise KeyboardInterrupt

        denoiser = best.final() if best else average.module.eval()
        processes.share(denoiser)  # only the first process validates and knows the best student
        run = Run(out, sampler.eval(), denoiser)
        processes.on_main(save_run, run)
    return run


_SHOWN = ("sampler_loss", "student_loss", "psnr_to_draws")  # metrics on the progress bar


class Average(AveragedModel):
    """The running average of the student's weights.

    Until the decay is reached, the average covers the last tenth of the steps, so that the initial weights
    leave no bias.
    """

    module: DirectDenoiser

    def __init__(self, denoiser: DirectDenoiser, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            n = float(count)
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(denoiser, avg_fn=average)
