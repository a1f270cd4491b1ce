"""A run's student in files that other programs open: ONNX, torch.export, a bioimage.io model package."""

import copy
import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of, went_through
from distill.exporting import bioimageio, graph
from distill.files import check_file, whole_file
from distill.limits import check_limits
from distill.prediction import backends
from distill.runs import checkpoint, packages

log = logging.getLogger(__name__)
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "bioimageio": ".zip"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"onnx": ONNX_PACKAGES, "torch-export": (), "bioimageio": (*ONNX_PACKAGES, "bioimageio.core")}
TOLERANCE = 1e-4  # of the range of the central map
ONNX_BYTES = 2**31  # what one file of protocol buffers can hold

Example = tuple[Tensor, dict[str, Tensor]]  # noisy (B, C, *S), and every map of it


def export(
    run: str | os.PathLike[str] | DirectDenoiser,
    out: str | Path | None = None,
    *,
    format: Literal["onnx", "torch-export", "bioimageio"] = "onnx",
    author: str = "anonymous",
    license: str | None = None,
    overwrite: bool = False,
    trust: str | Sequence[str] = (),
) -> Path:
    """Writes a run's student as one file that needs none of this toolkit -> the file's path.

    Raw counts (B, C, *S) float32 in, named "noisy", where S is Y and X of images, or Z, Y and X of volumes;
    every output map in raw counts out, under its own name, as with `predict`. Any B and S: standardization,
    padding, crop and calibration are inside. The file is kept if it gives what the student does, within 1e-4
    of its range, on images of several sizes.

    Args:
        run: a run or its folder, or a DirectDenoiser.
        out: file to write, ending in .onnx, .pt2 or .zip; Default: beside the run's student.
        format: kind of file: "onnx"; "torch-export", for torch.export.load, on the CPU unless moved
            (torch.export.passes.move_to_device_pass); or "bioimageio", a package for bioimage.io with the
            ONNX file, a TorchScript file of the same where the student allows one, a description and a test
            image, which bioimageio.core has tested. The student itself is in it too: `predict` takes the
            package in place of a run.
        author: name of the model's author, for bioimage.io.
        license: SPDX identifier of the model's licence, such as MIT or CC-BY-4.0; bioimage.io needs one.
        overwrite: replace `out` if it exists.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
    """
    check_limits(locals())
    _check_format(format)
    if format == "bioimageio":
        bioimageio.check(author, license)
    denoiser = copy.deepcopy(checkpoint.load_denoiser(run, trust=trust)).requires_grad_(False).cpu()
    denoiser = denoiser.to(memory_format=torch.contiguous_format)
    size = sum(p.nbytes for p in denoiser.parameters())
    # A package holds three copies of the weights, and is itself checked before it has its name.
    space = 1e6 + (8 if format == "bioimageio" else 3) * size
    out, name = _checked_path(run, out, ENDINGS[format], overwrite, space), checkpoint.name_of(run)
    student = f"{name}: its {type(denoiser.backbone).__name__}"
    if format != "torch-export" and size >= ONNX_BYTES:
        raise UserError(f"{student} is too large for one ONNX file; pass --format torch-export")
    with checks_of(name), torch.inference_mode():
        examples = _examples(denoiser)
        if _difference(denoiser.maps, examples):
            raise UserError(
                f"{student} draws at random, so that no file can be checked against it; export a student "
                "that gives the same every time, such as UNet"
            )
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        file = Path(folder) / ("student.pt2" if format == "torch-export" else "student.onnx")
        with _in_one_line(f"{student} cannot be exported as {format}"):
            program = graph.program(denoiser)
            if format == "torch-export":
                written = io.BytesIO()  # torch itself ends the program when the disk is full
                torch.export.save(program, written)
                file.write_bytes(written.getvalue())
                exported = torch.export.load(file).module()
            else:
                graph.save_onnx(program, denoiser, file)
                exported = backends.open_onnx(file)
            difference = _difference(exported, examples)
        if difference:
            raise UserError(f"{student} comes out wrong as {format}: {difference}; pass another --format")
        if format == "bioimageio":
            has_script = _write_torchscript(
                denoiser, file.with_name(bioimageio.TORCHSCRIPT), examples, student
            )
            checkpoint.save_denoiser(file.with_name(packages.STUDENT), denoiser)
            with _in_one_line(f"{student} cannot be packed for bioimage.io"):
                file = bioimageio.package(file, denoiser, author, str(license), has_script)
        with whole_file(out) as part:
            os.replace(file, part)
    return out


def _write_torchscript(denoiser: DirectDenoiser, path: Path, examples: list[Example], student: str) -> bool:
    """Whether it can be written so that it gives what the student does."""
    try:
        graph.save_torchscript(denoiser, path)
        difference = _difference(backends.open_torchscript(path, denoiser.loss.outputs), examples)
    except OSError:
        raise
    except Exception as error:  # of the student's own code as well, and of a torch that has no TorchScript
        difference = " ".join(str(error).split())[:200] or type(error).__name__
    if difference:
        log.info("%s: without TorchScript in the package (%s)", student, difference)
    return not difference


def _check_format(format: str) -> None:
    if format not in ENDINGS:
        raise UserError(f"format: got '{format}', allowed are {', '.join(ENDINGS)}")
    if missing := [name for name in PACKAGES[format] if not _is_installed(name)]:
        raise UserError(f"format: '{format}' needs {', '.join(missing)}; pip install '.[export]'")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _checked_path(
    run: str | os.PathLike[str] | DirectDenoiser,
    out: str | Path | None,
    ending: str,
    overwrite: bool,
    size: float,
) -> Path:
    if out is None:
        if isinstance(run, DirectDenoiser):
            raise UserError(f"out: needed for a DirectDenoiser, which has no folder; pass a name in {ending}")
        out = (Path(run) if Path(run).is_dir() else Path(run).parent) / f"student{ending}"
    return check_file(out, (ending,), overwrite, size)


def _examples(denoiser: DirectDenoiser) -> list[Example]:
    """Images like those trained on, of sizes that are and are not multiples of the backbone's."""
    multiple = getattr(denoiser.backbone, "multiple", 1)
    m = max(8, multiple)
    sizes = [  # batch, and Z, Y, X
        (2, m, m + 1, 3 * m - 1), (1, m // 2 + 1, 2 * m, 3 * m), (3, m + 2, 4 * m - 1, m // 2 + 1),
        (1, 2 * m, 3 * m, 3 * m),
    ]  # fmt: skip
    sizes += [(1, 1, 1, 1), (1, 2 * m, 3, 2 * m)] if multiple > 1 else []  # others may need more
    generator = torch.Generator().manual_seed(0)
    examples = []
    for batch, *size in sizes:
        shape = batch, len(denoiser.mean), *size[-denoiser.dims :]
        standard = torch.randn(shape, generator=generator)
        noisy = standard * denoiser.std + denoiser.mean
        examples.append((noisy, denoiser.maps(noisy)))
    return examples


def _difference(answer: backends.Answer, examples: list[Example]) -> str:
    """The first map that `answer` does not give as the examples have it; empty if there is none."""
    centres = np.concatenate([next(iter(maps.values())).flatten() for _, maps in examples])
    tolerance = max(TOLERANCE * np.ptp(centres), 1e-6 * abs(centres).max())  # float32 has 1e-7 of the counts
    for noisy, maps in examples:
        output = answer(noisy)
        for name, expected in maps.items():
            size, error = list(noisy.shape), float((output[name] - expected).abs().max())
            if output[name].shape != expected.shape or not error <= tolerance:
                return f"{name} of images {size} is {error:.3g} counts off, allowed are {tolerance:.3g}"
    return ""


@contextmanager
def _in_one_line(problem: str) -> Iterator[None]:
    """torch's exporters, onnxruntime and bioimageio raise errors of many kinds and many lines."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not went_through(error, "torch", "onnx", "onnxscript", "onnxruntime", "bioimageio"):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{problem} ({reason}); pass another --format") from error
