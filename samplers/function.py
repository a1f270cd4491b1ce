"""Posterior samplers from any function or network that draws clean images, in torch or NumPy."""

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samplers.base import PosteriorSampler, evaluating
from students.dimensions import check_dims
from students.upscale import Scale


class FunctionSampler(PosteriorSampler):
    """A frozen sampler around a function of torch tensors, in raw counts.

    An `fn` that is an nn.Module becomes a submodule: it moves to other devices with the sampler, and draws in
    eval mode. `sample` raises ValueError if `fn` returns another shape than it should.

    Args:
        fn: either fn(noisy (B, C, *S)) -> one fresh draw (B, C', *S'), which is called once for each draw; or
            fn(noisy, n) -> n draws (n, B, C', *S'), if it has a parameter `n` or two required parameters.
        out_channels: number of channels C' of a draw, such as 3 for a function that unmixes one image into
            three. Default: those of the image.
        scale: factor by which a draw is larger than the image, such as 2 for super-resolution; one whole
            number, or one each for Y and X. Default: 1.
        out_names: name of each channel of a draw, for files and reports. Default: see PosteriorSampler.
        dims: 2 if `fn` takes images (B, C, Y, X), 3 if it takes volumes (B, C, Z, Y, X).
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        *,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.declare(out_channels, scale, out_names)
        check_dims("FunctionSampler", dims)
        self.dims = dims
        if not callable(fn):
            raise ValueError(  # noqa: TRY004 (bad input is one kind of error here)
                f"FunctionSampler: got {type(fn).__name__}; pass a function of (noisy) or (noisy, n)"
            )
        self.fn = fn
        self._many, self._keyword = _takes_n(fn)

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        with evaluating(self):
            if not self._many:
                return torch.stack([self._checked(self.fn(noisy), noisy, ()) for _ in range(n)])
            draws = self.fn(noisy, n=n) if self._keyword else self.fn(noisy, n)
            return self._checked(draws, noisy, (n,))

    def _checked(self, draw: Tensor, noisy: Tensor, lead: tuple[int, ...]) -> Tensor:
        batch, _, *space = self.draw_shape(noisy.shape)
        got = tuple(draw.shape) if isinstance(draw, Tensor) else type(draw).__name__
        fits = isinstance(draw, Tensor) and draw.ndim == len(lead) + noisy.ndim
        channels = self.out_channels or (draw.shape[len(lead) + 1] if fits else "C")
        if got != (*lead, batch, channels, *space):
            expected = ", ".join(map(str, (*lead, batch, self.out_channels or "C", *space)))
            raise ValueError(
                f"FunctionSampler: fn returned {got} for noisy {tuple(noisy.shape)}; "
                f"it must return a tensor ({expected})"
            )
        return draw


class NumpySampler(PosteriorSampler):
    """A frozen sampler around a function of NumPy arrays, in raw counts.

    The generator is seeded from torch's random state, so torch.manual_seed repeats the draws. The function
    runs on the CPU, whatever the device of the images. `sample` raises ValueError if `fn` returns another
    shape than it should, or no real numbers.

    Args:
        fn: fn(noisy, rng) -> one fresh draw (B, C', Y', X'), from float32 images (B, C, Y, X) and a
            numpy.random.Generator.
        out_channels: see FunctionSampler.
        scale: see FunctionSampler.
        out_names: see FunctionSampler.
    """

    def __init__(
        self,
        fn: Callable[[np.ndarray, np.random.Generator], np.ndarray],
        *,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(out_channels, scale, out_names)
        if not callable(fn):
            raise ValueError(  # noqa: TRY004 (bad input is one kind of error here)
                f"NumpySampler: got {type(fn).__name__}; pass a function of (noisy, rng)"
            )
        self.fn = fn

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack([self._draw(noisy) for _ in range(n)])

    def _draw(self, noisy: Tensor) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        images = noisy.detach().float().cpu().numpy().copy()  # fn may write to them
        draw = self.fn(images, rng)
        shape = self.draw_shape(noisy.shape)
        if not isinstance(draw, np.ndarray) or draw.shape != shape or draw.dtype.kind not in "fiu":
            got = f"{draw.dtype} {draw.shape}" if isinstance(draw, np.ndarray) else type(draw).__name__
            raise ValueError(
                f"NumpySampler: fn returned {got} for noisy {tuple(noisy.shape)}; it must return an array of "
                f"real numbers {shape}"
            )
        return torch.from_numpy(draw.astype(np.float32)).to(noisy)


def _takes_n(fn: Callable[..., Tensor]) -> tuple[bool, bool]:
    """(whether fn makes n draws in one call, whether it takes `n` as a keyword)."""
    try:
        parameters = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn).parameters
    except (TypeError, ValueError):  # builtins have no signature
        return False, False
    named = "n" in parameters and parameters["n"].kind != inspect.Parameter.POSITIONAL_ONLY
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.kind in positional and p.default is p.empty]
    return named or len(required) >= 2, named
