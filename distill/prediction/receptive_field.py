"""Measures the receptive field of a network, which is the halo that tiles need."""

import math
import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.prediction.tiles import HALO, fixed_tile, in_tiles

LARGEST = 2048  # px; side of the largest test image. A larger receptive field counts as unlimited
_known: "WeakKeyDictionary[nn.Module, int | None]" = WeakKeyDictionary()


def receptive_field(denoiser: DirectDenoiser) -> int | None:
    """Radius of the receptive field along Y and X in pixels, rounded up; None if it is all of an image.

    A block of the input is set to NaN, which no weight, activation or normalisation removes, so the NaN
    pixels of the output are those that depend on the block. Gradients would miss pixels that happen to have
    weights of 0.
    """
    if denoiser not in _known:
        _known[denoiser] = _radius(denoiser)
    return _known[denoiser]


def maps_in_tiles(denoiser: DirectDenoiser, noisy: Tensor) -> dict[str, Tensor]:
    """Raw counts (B, C, *S) -> `denoiser.maps`; large images in tiles, with the receptive field as halo."""
    tile = fixed_tile(noisy.shape[2:])
    if tile is None:
        return denoiser.maps(noisy)
    radius = receptive_field(denoiser)

    def answer(part: Tensor) -> Tensor:
        return torch.cat(list(denoiser.maps(part).values()), dim=1)

    maps = in_tiles(answer, noisy, tile, HALO if radius is None else radius)
    return dict(zip(denoiser.loss.outputs, maps.chunk(len(denoiser.loss.outputs), dim=1), strict=True))


@torch.inference_mode()
def _radius(denoiser: DirectDenoiser) -> int | None:
    multiple = getattr(denoiser.backbone, "multiple", 1)
    # Plain convolutions, because faster ones share intermediate results, and so NaN, between pixels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about TF32, which is not used here
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            radii = [_along(denoiser, dim, multiple) for dim in (-2, -1)]
    return None if None in radii else max(radius for radius in radii if radius is not None)


def _along(denoiser: DirectDenoiser, dim: int, multiple: int) -> int | None:
    """The radius along one axis, measured on images or volumes that are narrow along the others."""
    narrow = 4 * math.lcm(multiple, 4) if denoiser.dims == 2 else 2 * multiple
    length = 256
    while length <= LARGEST:
        size = [1, denoiser.channels, *[narrow] * denoiser.dims]
        size[dim] = math.ceil(length / multiple) * multiple
        first = size[dim] // 2 // multiple * multiple
        places = _nan_places(denoiser, size, dim, first, multiple)
        lowest, highest = (int(each) // denoiser.scale[dim] for each in (places.min(), places.max()))
        if lowest > 0 and highest < size[dim] - 1:
            return max(first - lowest, highest - first - multiple + 1) + multiple - 1
        length *= 2
    return None


def _nan_places(denoiser: DirectDenoiser, size: list[int], dim: int, first: int, multiple: int) -> Tensor:
    """Output positions along `dim` that depend on the `multiple` input pixels from `first` on."""
    image = (denoiser.mean + torch.zeros(size, device=denoiser.mean.device)).contiguous()
    image.narrow(dim, first, multiple).fill_(torch.nan)
    is_nan = denoiser(image).isnan().movedim(dim, 0)
    return is_nan.flatten(1).any(dim=1).nonzero()
