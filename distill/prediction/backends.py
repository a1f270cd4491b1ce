"""Students that run elsewhere than in PyTorch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

Answer = Callable[[Tensor], Mapping[str, Tensor]]  # noisy (B, C, H, W) -> every map of it


def open_onnx(path: Path) -> Answer:
    """What the file computes, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda noisy: {
        name: torch.from_numpy(found)
        for name, found in zip(names, session.run(names, {"noisy": noisy.numpy()}), strict=True)
    }


def open_torchscript(path: Path, names: Sequence[str]) -> Answer:
    """What the file computes, by TorchScript on the CPU. names: of the maps, in their order."""
    with warnings.catch_warnings():  # deprecated in torch
        warnings.simplefilter("ignore")
        module = torch.jit.load(path, map_location="cpu")

    def answer(noisy: Tensor) -> dict[str, Tensor]:
        found = module(noisy)
        return dict(zip(names, [found] if isinstance(found, Tensor) else found, strict=True))

    return answer
