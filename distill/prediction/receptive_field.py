"""How far the pixels that a network's output pixel depends on can lie: the halo that tiles need."""

import math
import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.prediction.tiles import HALO, fixed_tile, in_tiles

LARGEST = 2048  # pixels of the largest probe's side; a network that sees more sees no limit
_known: "WeakKeyDictionary[nn.Module, int | None]" = WeakKeyDictionary()


def receptive_field(denoiser: DirectDenoiser) -> int | None:
    """Its radius in pixels along Y and X, rounded up; None for a network that looks at all of an
    image, however large.

    One block of pixels is NaN, which no weight, activation or normalisation takes away: wherever it turns up
    in the output is what depends on those pixels. Unlike gradients this needs no luck with weights.
    """
    if denoiser not in _known:
        _known[denoiser] = _radius(denoiser)
    return _known[denoiser]


def maps_in_tiles(denoiser: DirectDenoiser, noisy: Tensor) -> dict[str, Tensor]:
    """Raw counts (B, C, *S) -> `denoiser.maps` of them, large images in tiles with a halo of what it can
    see."""
    tile = fixed_tile(noisy.shape[2:])
    if tile is None:
        return denoiser.maps(noisy)
    radius = receptive_field(denoiser)

    def answer(seen: Tensor) -> Tensor:
        return torch.cat(list(denoiser.maps(seen).values()), dim=1)

    maps = in_tiles(answer, noisy, tile, HALO if radius is None else radius)
    return dict(zip(denoiser.loss.outputs, maps.chunk(len(denoiser.loss.outputs), dim=1), strict=True))


@torch.inference_mode()
def _radius(denoiser: DirectDenoiser) -> int | None:
    multiple = getattr(denoiser.backbone, "multiple", 1)
    # Plain convolutions: faster ones share work between pixels, and NaN with it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of TF32, which nobody asked for
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            radii = [_along(denoiser, dim, multiple) for dim in (-2, -1)]
    return None if None in radii else max(radius for radius in radii if radius is not None)


def _along(denoiser: DirectDenoiser, dim: int, multiple: int) -> int | None:
    """The radius along one axis, in images or volumes that are narrow along the others."""
    narrow = 4 * math.lcm(multiple, 4) if denoiser.dims == 2 else 2 * multiple
    length = 256
    while length <= LARGEST:
        size = [1, denoiser.channels, *[narrow] * denoiser.dims]
        size[dim] = math.ceil(length / multiple) * multiple
        first = size[dim] // 2 // multiple * multiple
        reached = _reached(denoiser, size, dim, first, multiple)
        lowest, highest = (int(each) // denoiser.scale[dim] for each in (reached.min(), reached.max()))
        if lowest > 0 and highest < size[dim] - 1:
            return max(first - lowest, highest - first - multiple + 1) + multiple - 1
        length *= 2
    return None


def _reached(denoiser: DirectDenoiser, size: list[int], dim: int, first: int, multiple: int) -> Tensor:
    """The places along `dim` where the output depends on the `multiple` pixels from `first` on."""
    image = (denoiser.mean + torch.zeros(size, device=denoiser.mean.device)).contiguous()
    image.narrow(dim, first, multiple).fill_(torch.nan)
    seen = denoiser(image).isnan().movedim(dim, 0)
    return seen.flatten(1).any(dim=1).nonzero()
