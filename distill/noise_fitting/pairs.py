"""Pairs of signal and dequantised observation in raw counts, for fitting noise models."""

import logging

import numpy as np

from distill.errors import UserError
from distill.images.stack import Stack
from distill.images.statistics import as_float32, some_frames
from distill.noise_fitting.blind_spot import blind_spot_pairs

log = logging.getLogger(__name__)

MAX_PAIRS, MAX_FRAMES = 2_000_000, 400


def repeated(stack: Stack, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(signal, observation) of repeats, each (N, K) at K positions; columns 2i and 2i + 1 are neighbours."""
    x = _read(stack, _some_frames(stack), _positions(stack, rng))
    n = len(x)
    if n < 2:
        raise _one_frame(stack)
    s = x.mean(0, keepdims=True, dtype="f8")
    residual = (x - s) * (n / (n - 1)) ** 0.5
    left, right = residual[:, 0::2].ravel(), residual[:, 1::2].ravel()
    correlation = (left * right).mean() / max((residual**2).mean(), 1e-12)
    if correlation > 0.2:
        log.warning(
            f"{stack.name}: residuals of neighbours correlate at {correlation:.2f}; the scene moves or "
            "bleaches, or the noise is structured: this fit is too wide"
        )
    residual += _dequantising(stack, residual.shape, rng)
    return np.broadcast_to(s, x.shape).astype("f4"), (s + residual).astype("f4")


def noise_images(stack: Stack, clean: Stack | None, dark: bool) -> np.ndarray:
    """Images of the noise alone of one channel, float32 (N, Y, X), from at most MAX_FRAMES frames."""
    noisy = as_float32(stack.frames[_some_frames(stack)], stack.name)
    if clean is not None:
        index = _some_frames(stack) if len(clean.frames) > 1 else [0]
        noise = noisy - np.asarray(clean.frames[index], dtype="f4")
    elif dark:
        noise = noisy - noisy.mean((0, 2, 3), keepdims=True)
    elif len(noisy) < 2:
        raise _one_frame(stack)
    else:
        noise = (noisy - noisy.mean(0)) * (len(noisy) / (len(noisy) - 1)) ** 0.5
    noise += _dequantising(stack, noise.shape, np.random.default_rng(0)).astype("f4")
    return noise.reshape(-1, *noise.shape[-2:])


def signal_images(stack: Stack, clean: Stack | None, dark: bool) -> np.ndarray:
    """The signal that `noise_images` subtracts from the images, float32, broadcast to (N, Y, X)."""
    index = _some_frames(stack)
    if clean is not None:
        signal = np.asarray(clean.frames[index if len(clean.frames) > 1 else [0]], dtype="f4")
    else:
        noisy = np.asarray(stack.frames[index], dtype="f4")
        signal = np.broadcast_to(noisy.mean((0, 2, 3) if dark else 0, keepdims=True), noisy.shape)
    signal = np.broadcast_to(signal, (len(index), *signal.shape[1:]))
    return signal.reshape(-1, *signal.shape[-2:])


def with_signal(stack: Stack, clean: Stack, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(signal, observation), each (N, K), where the signal is a denoised version of the same images."""
    frames, positions = _some_frames(stack), _positions(stack, rng)
    x = _read(stack, frames, positions)
    s = _read(clean, frames if len(clean.frames) > 1 else [0] * len(frames), positions)
    return s, x + _dequantising(stack, x.shape, rng).astype("f4")


def bootstrapped(stack: Stack, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(signal, observation), each (K,), where the signal is predicted from the neighbours."""
    if min(stack.frames.shape[-2:]) < 16:
        raise UserError(f"{stack.name}: frames of {stack.frames.shape[-2:]} are too small to"
                        " bootstrap from; pass at least 16 x 16 pixels")  # fmt: skip
    s, x = blind_spot_pairs(stack.frames, rng)
    return s, x + _dequantising(stack, x.shape, rng).astype("f4")


def _one_frame(stack: Stack) -> UserError:
    return UserError(
        f"{stack.name}: got one frame of shape {stack.frames.shape[1:]}; a static scene needs 2"
        " frames or more (about 100); pass those, or method bootstrap"
    )


def check_fits(stack: Stack, clean: Stack) -> None:
    if clean.frames.shape not in (stack.frames.shape, (1, *stack.frames.shape[1:])):
        raise UserError(
            f"{clean.name}: signal of {clean.frames.shape} (N, C, Y, X) does not fit images of"
            f" {stack.frames.shape}; pass one denoised frame or as many as there are noisy ones"
        )


def _some_frames(stack: Stack) -> np.ndarray:
    n = len(stack.frames)
    return np.linspace(0, n - 1, min(n, MAX_FRAMES)).round().astype(int)


def _positions(stack: Stack, rng: np.random.Generator) -> np.ndarray:
    """Flat (C, Y, X) indices in random order, where each even position is followed by its right neighbour."""
    size, width = int(np.prod(stack.frames.shape[1:])), stack.frames.shape[-1]
    count = max(1, min(size, max(MAX_PAIRS // len(_some_frames(stack)), 1000)) // 2)
    first = rng.choice(size, size=count, replace=False)
    first -= first % width == width - 1
    return np.stack([first, first + (width > 1)], axis=1).ravel()


def _read(stack: Stack, frames, positions: np.ndarray) -> np.ndarray:
    picked = [np.asarray(stack.frames[int(i)]).ravel()[positions] for i in frames]
    return as_float32(np.stack(picked), stack.name)


def _dequantising(stack: Stack, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform noise for integer images: a density that is fitted to integers would collapse on them."""
    width = 0.5 if stack.pixels.dtype.kind in "iu" else 0.0
    return rng.uniform(-width, width, shape)


def levels(data: Stack) -> np.ndarray:
    """Rough signals of noisy data, which are means of 4 x 4 pixels in some frames."""
    _, channels, y, x = data.frames.shape
    crop = some_frames(data, 8)[..., : max(y // 4, 1) * 4, : max(x // 4, 1) * 4]
    if min(y, x) < 4:
        return crop
    return crop.reshape(-1, channels, y // 4, 4, x // 4, 4).mean((3, 5))
