"""What the button starts, in a thread of its own: networks for a layer's stack, then their answer."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.denoiser import DirectDenoiser
from distill.denoising import PATCH, networks_for
from distill.errors import UserError, of_the_machine
from distill.images.stack import Stack
from distill.memory import check_memory
from distill.prediction.predict import predict_maps
from distill.prediction.pretrained import PRETRAINED, pretrained_denoiser
from distill.runs.checkpoint import load_denoiser
from distill.training.engine import train
from losses import L2
from samplers.base import evaluating
from students import StabilizedUNet

FINISHED = "run"  # beside PRETRAINED and budgets
VALIDATE_EVERY = 50  # steps: some previews in a minute
SIDE = 512  # px: of what a preview denoises
Tell = Callable[[dict[str, Any]], object]


def answer(stack: Stack, networks: str, folder: Path, frame: Callable[[], int], tell: Tell) -> None:
    """Trains or loads, then denoises, and tells what is new: a row of metrics, a `preview`, the `share`
    that is denoised, and in the end the `maps` by name, or why they are `refused`.

    networks: PRETRAINED, FINISHED, or a budget. folder: of the run, finished or to be trained. frame: which
    one a preview shows. tell: may raise KeyboardInterrupt to stop, with a checkpoint.
    """
    _keep_llvm_single()
    try:
        size = 4.0 * stack.pixels.size
        check_memory(size, stack.name, "denoise a part of it here, or its file by `distill denoise`")
        denoiser = _denoiser(stack, networks, folder, frame, tell)
        tell({"share": 0.0})
        tell({"maps": predict_maps(denoiser, stack, lambda share: tell({"share": share}))})
    except KeyboardInterrupt:
        return
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else of_the_machine(error)
        if not text:
            raise
        tell({"refused": text})


def _keep_llvm_single() -> None:
    """torch imports triton where there is one, though nothing here needs it. With the LLVM of a Mesa driver
    in the process, which draws napari's window on many a Linux machine, that is a segmentation fault."""
    libraries = Path("/proc/self/maps")
    if "triton" not in sys.modules and libraries.exists() and "libLLVM" in libraries.read_text():
        sys.modules["triton"] = None  # pyright: ignore[reportArgumentType]


def _denoiser(
    stack: Stack, networks: str, folder: Path, frame: Callable[[], int], tell: Tell
) -> DirectDenoiser:
    if networks == PRETRAINED:
        return pretrained_denoiser(stack)
    if networks == FINISHED:
        return load_denoiser(folder)
    sampler, student = networks_for(stack)

    def log(row: dict[str, Any]) -> None:
        tell(row)
        if "val_student_loss" in row:
            tell({"preview": preview(student, stack, frame())})

    patch = min(PATCH, *stack.frames.shape[2:])
    run = train(stack, sampler, student, L2(), folder, budget=networks, patch_size=patch,
                validate_every=VALIDATE_EVERY, on_log=log)  # fmt: skip
    return run.denoiser


def preview(student: StabilizedUNet, stack: Stack, frame: int) -> np.ndarray:
    """One frame with the student's answer in its middle, shown at every place of the stack, in no memory."""
    shown = np.array(stack.frames[frame], np.float32)
    rows, columns = (slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in shown.shape[1:])
    device = next(student.parameters()).device
    noisy = torch.from_numpy(shown[None, :, rows, columns]).to(device)
    with evaluating(student):
        shown[:, rows, columns] = student.denoise(noisy)[0].cpu().numpy()
    return stack.restore(np.broadcast_to(shown, (len(stack.frames), *shown.shape)))
