"""The work of the Denoise button in its own thread: trains or loads networks, and denoises a layer."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.denoiser import DirectDenoiser
from distill.denoising import networks_for, patch_size_for
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

FINISHED = "run"  # the third choice of networks, with PRETRAINED and budgets
VALIDATE_EVERY = 50  # steps; gives several previews per minute
SIDE = 512  # px; side of the denoised part of a preview
Tell = Callable[[dict[str, Any]], object]


def answer(
    stacks: Mapping[int, Stack], networks: str, folder: Path, frame: Callable[[], int], tell: Tell
) -> None:
    """Trains or loads networks and denoises an image.

    Args:
        stacks: the noisy image as networks of images (2) and of volumes (3) see it.
        networks: PRETRAINED, FINISHED, or a training budget such as "5 min".
        folder: folder of the finished or the new run.
        frame: returns the index of the frame for previews.
        tell: gets the progress: rows of metrics, `preview` images, the finished `share`, and finally the
            `maps` (all output images by name), or the error text `refused`. It may raise KeyboardInterrupt
            to stop, which writes a checkpoint.
    """
    _keep_llvm_single()
    try:
        size, name = 4.0 * stacks[2].pixels.size, stacks[2].name
        check_memory(size, name, "denoise a part of it here, or its file by `distill denoise`")
        denoiser = _denoiser(stacks[2], networks, folder, frame, tell)
        tell({"share": 0.0})
        stack = stacks[denoiser.dims]
        tell({"maps": predict_maps(denoiser, stack, lambda share: tell({"share": share}))})
    except KeyboardInterrupt:
        return
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else of_the_machine(error)
        if not text:
            raise
        tell({"refused": text})


def _keep_llvm_single() -> None:
    """Prevents torch from importing triton, which is not needed here.

    On Linux, napari's window may be drawn by a Mesa driver, which loads its own LLVM library. Together with
    the LLVM of triton, that ends in a segmentation fault.
    """
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

    patch = patch_size_for(stack.frames.shape)
    run = train(stack, sampler, student, L2(), folder, budget=networks, patch_size=patch,
                validate_every=VALIDATE_EVERY, on_log=log)  # fmt: skip
    return run.denoiser


def preview(student: StabilizedUNet, stack: Stack, frame: int) -> np.ndarray:
    """A frame whose centre is denoised, as a stack that repeats it at every position without more memory."""
    image = np.array(stack.frames[frame], np.float32)
    rows, columns = (slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in image.shape[1:])
    device = next(student.parameters()).device
    noisy = torch.from_numpy(image[None, :, rows, columns]).to(device)
    with evaluating(student):
        image[:, rows, columns] = student.denoise(noisy)[0].cpu().numpy()
    return stack.restore(np.broadcast_to(image, (len(stack.frames), *image.shape)))
