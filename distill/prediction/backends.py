"""Runs exported students with onnxruntime and TorchScript."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

Answer = Callable[[Tensor], Mapping[str, Tensor]]  # noisy (B, C, *S) -> all output images by name


def open_onnx(path: Path) -> Answer:
    """The function of an ONNX file, computed by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda noisy: {
        name: torch.from_numpy(image)
        for name, image in zip(names, session.run(names, {"noisy": noisy.numpy()}), strict=True)
    }


def open_torchscript(path: Path, names: Sequence[str]) -> Answer:
    """The function of a TorchScript file, computed on the CPU. names: of the output images, in order."""
    with warnings.catch_warnings():  # deprecated in torch
        warnings.simplefilter("ignore")
        module = torch.jit.load(path, map_location="cpu")

    def answer(noisy: Tensor) -> dict[str, Tensor]:
        output = module(noisy)
        return dict(zip(names, [output] if isinstance(output, Tensor) else output, strict=True))

    return answer
