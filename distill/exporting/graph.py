"""Students as graphs of operators, for images of any size."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser


def program(denoiser: DirectDenoiser) -> torch.export.ExportedProgram:
    """The graph of a student with its weights, for any B, H and W."""
    m = max(8, getattr(denoiser.backbone, "multiple", 1))
    noisy = torch.zeros(2, len(denoiser.mean), 2 * m + 3, 3 * m + 5)  # sizes that no layer treats specially
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(_Maps(denoiser), (noisy,), dynamic_shapes={"noisy": any_size})
    for node in exported.graph.nodes:
        node.meta.pop(
            "stack_trace", None
        )  # otherwise the file would contain the source paths of this machine
    return exported


def save_onnx(program: torch.export.ExportedProgram, names: Sequence[str], path: Path) -> None:
    """Writes a program as one ONNX file with its weights. names: names of the outputs."""
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["noisy"],
        output_names=names,
        dynamic_shapes={"noisy": {0: "batch", 2: "height", 3: "width"}},
        verbose=False,
    )
    assert made is not None  # dynamo gives a program
    graph = made.model.graph
    for node in graph:
        for value in node.outputs:
            if value.name in names and value not in graph.outputs:  # an operator "mean" may have the name
                value.name = f"{value.name}_inside"
    made.save(path, external_data=False)


class _Maps(nn.Module):
    def __init__(self, denoiser: DirectDenoiser) -> None:
        super().__init__()
        self.denoiser = copy(denoiser)
        self.denoiser._modules = {"backbone": denoiser.backbone}
        self.denoiser.__dict__["loss"] = denoiser.loss  # no submodule: its networks are not needed

    def forward(self, noisy: Tensor) -> dict[str, Tensor]:
        return self.denoiser.maps(noisy)
