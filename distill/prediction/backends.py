"""Students that run elsewhere than in PyTorch."""

from collections.abc import Callable, Mapping
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
