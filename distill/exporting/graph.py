"""Students as graphs of operators, for images and volumes of any size."""

import warnings
import zipfile
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from distill.denoiser import DirectDenoiser


def program(denoiser: DirectDenoiser) -> torch.export.ExportedProgram:
    """The graph of a student with its weights, for any B and *S."""
    noisy, free = _example(denoiser), dict.fromkeys(_any_size(denoiser.dims), torch.export.Dim.DYNAMIC)
    # Otherwise no file would take a volume whose coarsest level has one pixel along an axis.
    with _config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        exported = torch.export.export(_Maps(denoiser), (noisy,), dynamic_shapes={"noisy": free})
    for node in exported.graph.nodes:
        node.meta.pop(
            "stack_trace", None
        )  # otherwise the file would contain the source paths of this machine
    return exported


def _any_size(dims: int) -> dict[int, str]:
    """The axes of any size, with their names."""
    space = ["depth", "height", "width"][-dims:]
    return {0: "batch", **dict(enumerate(space, start=2))}


def save_onnx(program: torch.export.ExportedProgram, denoiser: DirectDenoiser, path: Path) -> None:
    """Writes a student's program as one ONNX file with its weights."""
    names = denoiser.loss.outputs
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["noisy"],
        output_names=names,
        dynamic_shapes={"noisy": _any_size(denoiser.dims)},
        verbose=False,
    )
    assert made is not None  # dynamo gives a program
    graph = made.model.graph
    for node in graph:
        for value in node.outputs:
            if value.name in names and value not in graph.outputs:  # an operator "mean" may have the name
                value.name = f"{value.name}_inside"
    made.save(path, external_data=False)


def save_torchscript(denoiser: DirectDenoiser, path: Path) -> None:
    """Writes one file with the weights in it, free in B and *S: noisy -> its map, or a tuple of several."""
    traced = path.with_name(f"traced_{path.name}")
    with warnings.catch_warnings():  # deprecated in torch, but what deepImageJ and BioEngine read
        warnings.simplefilter("ignore")
        module: Any = torch.jit.trace(_Listed(denoiser), _example(denoiser), check_trace=False)
        module.save(traced)
    with zipfile.ZipFile(traced) as whole, zipfile.ZipFile(path, "w") as archive:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # they name the source paths of this machine
                archive.writestr(entry.filename, whole.read(entry))
    traced.unlink()


def _example(denoiser: DirectDenoiser) -> Tensor:
    m = max(8, getattr(denoiser.backbone, "multiple", 1))
    size = (m + 1, 2 * m + 3, 3 * m + 5)[-denoiser.dims :]
    return torch.zeros(2, len(denoiser.mean), *size)  # no size that a layer treats specially


class _Maps(nn.Module):
    def __init__(self, denoiser: DirectDenoiser) -> None:
        super().__init__()
        self.denoiser = copy(denoiser)
        self.denoiser._modules = {"backbone": denoiser.backbone}
        self.denoiser.__dict__["loss"] = denoiser.loss  # no submodule: its networks are not needed

    def forward(self, noisy: Tensor) -> dict[str, Tensor]:
        return self.denoiser.maps(noisy)


class _Listed(_Maps):
    def forward(self, noisy: Tensor) -> Any:
        first, *others = self.denoiser.maps(noisy).values()
        return (first, *others) if others else first
