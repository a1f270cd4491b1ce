"""Model packages as bioimage.io defines them (format 0.5): weights, description, test image, cover."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.datasets import specimen, specimen_volume
from distill.denoiser import DirectDenoiser
from distill.errors import UserError
from distill.exporting.license import LICENSES, check_license
from distill.images.context import parsed
from distill.plots.pictures import mosaic
from distill.runs.packages import STUDENT

PAPER, DOI = "Salmon & Krull, Direct Unsupervised Denoising, 2023", "10.48550/arXiv.2310.18116"
TORCHSCRIPT = "student.pt"
SIZE = 127  # px of the test image: odd, and the cover of two such images 2:1
DEPTH, SIDE = 13, 47  # planes and px of the test volume
TEXT = """# {title}

Denoises images in one pass. A {student} that was distilled from the draws of a posterior sampler
({paper}, doi:{doi}).

Input `noisy`: raw counts (batch, channel: {channels}, {axes}), of any size, from the microscope and
with the settings of the images it was trained on (mean {mean}, std {std} counts). Do not normalise them.

Outputs, in raw counts: {maps}. The training loss was {loss}.

Its weights are the same network in every format. posterior-distill opens the package as well
(`distill predict PACKAGE.zip noisy.tif --out clean.tif`), for images of any size.

## Validation

The test image is a synthetic specimen, brought to the mean and std of the training images: it shows that
the network computes the same everywhere, not how well it denoises. For that, compare with averaged
repeats of your own images, by PSNR.
"""


def check(author: str, license: str | None) -> None:
    """A UserError for what `package` could not write: to be called before the long work."""
    from bioimageio.spec.model import v0_5 as spec

    check_license(license)
    try:
        spec.LicenseId(str(license))
    except ValueError:
        raise UserError(f"license: got '{license}', no SPDX identifier; {LICENSES}") from None
    try:
        spec.Author(name=author)
    except ValueError:
        raise UserError(f"author: got '{author}', must be a name without slashes") from None


def package(weights: Path, denoiser: DirectDenoiser, author: str, license: str, has_script: bool) -> Path:
    """Packs an ONNX file, its neighbours student.safetensors and, where there is one, TORCHSCRIPT, and what
    describes them into a .zip beside them, which bioimageio.core then tests."""
    from bioimageio.core import test_description
    from bioimageio.spec import save_bioimageio_package

    path = weights.with_suffix(".zip")
    description = _describe(weights, denoiser, author, license, has_script)
    save_bioimageio_package(description, output_path=path)
    with warnings.catch_warnings():  # TorchScript is deprecated in torch
        warnings.simplefilter("ignore")
        summary = test_description(path, expected_type="model")
    if summary.status != "passed":
        errors = [error.msg for detail in summary.details for error in detail.errors]
        raise UserError(f"bioimageio.core's test of the package: {summary.status}, {errors[:1]}")
    return path


def _describe(weights: Path, denoiser: DirectDenoiser, author: str, license: str, has_script: bool) -> Any:
    """The model description; the files that it names are written beside the weights."""
    import onnx
    from bioimageio.spec.model import v0_5 as spec

    folder = weights.parent
    student, loss = type(denoiser.backbone).__name__, type(denoiser.loss).__name__
    noisy = _test_image(denoiser)
    with torch.inference_mode():
        maps = denoiser.maps(noisy)
    mosaic(folder / "cover.png", [noisy, next(iter(maps.values()))], rows=1)
    title = f"One-pass denoiser ({student} {loss})"
    (folder / "README.md").write_text(
        TEXT.format(
            title=title,
            paper=PAPER,
            doi=DOI,
            student=student,
            loss=loss,
            channels=_channels(denoiser),
            axes=", ".join(_space(denoiser)),
            mean=_numbers(denoiser.mean),
            std=_numbers(denoiser.std),
            maps=", ".join(f"`{name}`" for name in maps),
        )
    )

    def tensor(kind: type, name: str, image: Tensor, space: list[Any], names: Sequence[str] = ()) -> Any:
        np.save(folder / f"{name}.npy", image.numpy())
        names = list(names) or [f"channel{i}" for i in range(image.shape[1])]
        channels = spec.ChannelAxis(channel_names=names)
        return kind(
            id=name,
            axes=[spec.BatchAxis(), channels, *space],
            data=spec.IntervalOrRatioDataDescr(type="float32"),
            test_tensor=spec.FileDescr(source=folder / f"{name}.npy"),
        )

    script = spec.TorchscriptWeightsDescr(
        source=folder / TORCHSCRIPT, pytorch_version=spec.Version(torch.__version__.partition("+")[0])
    )
    free = spec.ParameterizedSize(min=1, step=1)
    # A reader takes an output's size for the input's times the ratio of their scales.
    any_size = [
        spec.SpaceInputAxis(id=spec.AxisId(axis), size=free, scale=float(by))
        for axis, by in _space(denoiser).items()
    ]
    same_size = [
        spec.SpaceOutputAxis(id=axis, size=spec.SizeReference(tensor_id=spec.TensorId("noisy"), axis_id=axis))
        for axis in map(spec.AxisId, _space(denoiser))
    ]
    return spec.ModelDescr(
        name=title,
        description="Raw counts in, denoised raw counts out, in one pass.",
        authors=[spec.Author(name=author)],
        cite=[spec.CiteEntry(text=PAPER, doi=spec.Doi(DOI))],
        license=spec.LicenseId(license),
        tags=["denoising", "image-restoration", f"{denoiser.dims}d", "unsupervised-learning"],
        documentation=spec.FileDescr(source=folder / "README.md"),
        covers=[spec.FileDescr(source=folder / "cover.png")],
        inputs=[tensor(spec.InputTensorDescr, "noisy", noisy, any_size)],
        outputs=[
            tensor(spec.OutputTensorDescr, *item, same_size, denoiser.out_names) for item in maps.items()
        ],
        attachments=[spec.FileDescr(source=folder / STUDENT)],
        weights=spec.WeightsDescr(
            onnx=spec.OnnxWeightsDescr(
                source=weights, opset_version=onnx.load(weights).opset_import[0].version
            ),
            torchscript=script if has_script else None,
        ),
    )


def _channels(denoiser: DirectDenoiser) -> str:
    """Description of the input channels."""
    maps = f", then {denoiser.conditions} conditions such as a mask" * bool(denoiser.conditions)
    if denoiser.context is None:
        return f"{denoiser.plane_channels}{maps}"
    axis, distance = parsed(denoiser.context)
    order = ", ".join(f"{axis}{step:+d}" for d in range(1, distance + 1) for step in (-d, d))
    return f"{denoiser.plane_channels} of the plane itself, then those of its neighbours {order}{maps}"


def _space(denoiser: DirectDenoiser) -> dict[str, int]:
    """The axes in space, and how much larger the output is along each."""
    return dict(zip("zyx"[-denoiser.dims :], (1, *denoiser.scale)[-denoiser.dims :], strict=True))


def _test_image(denoiser: DirectDenoiser) -> Tensor:
    """(1, C, *S) raw counts: one field of view of the built-in specimen, or one volume, per channel."""
    channels = range(len(denoiser.mean))
    if denoiser.dims == 2:
        noisy = specimen(len(channels), SIZE).noisy
    else:
        noisy = np.stack([specimen_volume(DEPTH, SIDE, seed=i).noisy for i in channels])
    fields = torch.from_numpy(noisy.astype(np.float32))[None]
    variation, centre = torch.std_mean(fields, dim=list(range(2, fields.ndim)), keepdim=True)
    return (fields - centre) / variation * denoiser.std + denoiser.mean


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.5g}" for value in values.flatten().tolist())
