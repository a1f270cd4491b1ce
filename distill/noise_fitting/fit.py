"""Fits a noise model to repeated frames, to a calibration stack, or to the noisy data alone."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from distill.errors import UserError
from distill.files import check_file, whole_file
from distill.images.sources import Images, as_stack
from distill.images.stack import Stack
from distill.limits import COUNT, check_limits
from distill.noise_fitting.pairs import (
    bootstrapped,
    check_fits,
    levels,
    noise_images,
    repeated,
    signal_images,
    with_signal,
)
from distill.plots.noise import noise_autocorrelation, noise_density
from samplers import (
    AutoregressiveNoise,
    ChannelNoise,
    CorrelatedNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    HistogramNoise,
    NoiseModel,
)

log = logging.getLogger(__name__)

Context = Literal["image", "row", "column"]
KINDS = {"gmm": GaussianMixtureNoise, "gaussian": GaussianNoise, "histogram": HistogramNoise}
STRUCTURED = ("correlated", "autoregressive")
METHODS = ("repeats", "calibration", "bootstrap", "dark")
MAX_HELD = 200_000


def fit_noise_model(
    images: Images,
    out: str | os.PathLike,
    *,
    signal: Images | None = None,
    kind: Literal["gmm", "gaussian", "histogram", "correlated", "autoregressive"] = "gmm",
    method: Literal["repeats", "calibration", "bootstrap", "dark"] = "repeats",
    percentiles: tuple[float, float] | None = None,
    held_out: float = 0.1,
    n_gaussian: int = 3,
    n_coeff: int = 2,
    context: Context = "image",
    steps: int = 1000,
    data: Images | None = None,
    seed: int = 0,
    axes: str | None = None,
    overwrite: bool = False,
) -> NoiseModel:
    """Fits a noise model, tests it on held-out pixels, and writes it with a plot.

    The model is written to `out` (.npz), and the plot beside it under the same name (.png). Each of several
    channels is fitted by itself; the file then contains a ChannelNoise, and each channel has a plot, such as
    noise_channel0.png.

    With "repeats" and "calibration", the signal is the mean of the N frames. It contains 1/N of each pixel's
    own noise, so residuals are scaled by sqrt(N / (N - 1)), which makes their variance right for any N >= 2.
    With "bootstrap", the signal comes from `blind_spot_pairs`, or is `signal`, a denoised version of `images`
    (one frame or as many). With "dark", the mean level is subtracted.

    The kinds "correlated" and "autoregressive" are for noise that is correlated between pixels, and need
    repeats, dark frames, or bootstrap with a signal. The other kinds model each pixel independently.

    Args:
        kind: noise model: "gmm" (Gaussian mixture), "gaussian" (variance linear in the signal),
            "histogram", or for noise that is correlated between pixels "correlated" (Gaussian, for
            StabilizedSampler) or "autoregressive" (of any distribution, for StructuredNoiseVAE).
        method: kind of the images: "repeats" or "calibration", frames of one static scene; "bootstrap",
            noisy frames of any scene; "dark", frames without signal.
        percentiles: percentiles of the signal between which pairs are used. Default: (0, 100) for a
            calibration, (0.5, 99.5) otherwise.
        held_out: fraction of the pixels that is not used for the fit; `held_out_nll` of the returned model
            is their mean negative log-likelihood in nats per pixel (integers dequantised).
        n_gaussian: number of Gaussians of a gmm.
        n_coeff: number of polynomial coefficients in the signal for each parameter of a gmm.
        context: pixels that condition an autoregressive model: "image", or "row" or "column" for line
            noise, which are far cheaper.
        steps: number of updates of an autoregressive model.
        data: noisy images that the model is intended for; their range is compared with the fitted one.
        seed: seed of the held-out pixels and of the fit.
        axes: letters of the images' dimensions, of STCZYX. Default: those of the file.
        overwrite: whether to replace `out` if it exists.
    """
    check_limits(locals(), steps=COUNT)
    out = check_file(out, (".npz",), overwrite, 1e6)
    _check(kind, method, signal, percentiles, context)
    stack, clean, meant = as_stack(images, axes), *(v if v is None else as_stack(v) for v in (signal, data))
    if clean is not None:
        check_fits(stack, clean)
    plots = [check_file(path, (".png",), overwrite) for path in _plots(out, stack.frames.shape[1])]
    if kind in STRUCTURED:
        structured = partial(_autoregressive, context=context, steps=steps, seed=seed)
        fit = partial(_fit_structured, fit=_correlated if kind == "correlated" else structured,
                      dark=method == "dark", held_out=held_out)  # fmt: skip
    else:
        percentiles = percentiles or ((0, 100) if method == "calibration" else (0.5, 99.5))
        options: dict[str, Any] = {
            "gmm": {"n_gaussian": n_gaussian, "n_coeff": n_coeff},
            "histogram": {"step": 1 if stack.pixels.dtype.kind in "iu" else None},
        }.get(kind, {})
        options |= {"percentiles": tuple(percentiles), "seed": seed}
        fit = partial(_fit_pixels, kind=kind, method=method, held_out=held_out, **options)
    fitted = [fit(*images) for images in _by_channel(stack, clean, meant)]
    model: Any = fitted[0][0] if len(fitted) == 1 else ChannelNoise([each for each, _ in fitted])
    model.held_out_nll = float(np.mean([each.held_out_nll for each, _ in fitted]))
    with whole_file(out) as part:
        model.write(part)
    for path, (_, draw) in zip(plots, fitted, strict=True):
        draw(path)
    return model


Fitted = tuple[Any, Callable[[Path], None]]  # a noise model, and a function that draws its plot


def _plots(out: Path, channels: int) -> list[Path]:
    if channels == 1:
        return [out.with_suffix(".png")]
    return [out.with_name(f"{out.stem}_channel{c}.png") for c in range(channels)]


def _by_channel(
    stack: Stack, clean: Stack | None, meant: Stack | None
) -> Iterator[tuple[Stack, Stack | None, Stack | None]]:
    """Yields the images, and the others that belong to them, for one channel after another."""
    channels = stack.frames.shape[1]
    if channels == 1:
        yield stack, clean, meant
        return
    for c in range(channels):
        own = clean and clean.channel(c)
        yield (
            stack.channel(c),
            own,
            meant.channel(c) if meant and meant.frames.shape[1] == channels else meant,
        )


def _fit_pixels(
    stack: Stack,
    clean: Stack | None,
    meant: Stack | None,
    *,
    kind: str,
    method: str,
    held_out: float,
    percentiles: tuple[float, float],
    seed: int,
    **options: Any,
) -> Fitted:
    """Fits a model of independent pixels to one channel. meant: other images that it is intended for."""
    rng = np.random.default_rng(seed)
    if clean is not None:
        s, x = with_signal(stack, clean, rng)
    else:
        s, x = bootstrapped(stack, rng) if method == "bootstrap" else repeated(stack, rng)
    test = rng.random(s.shape[-1]) < held_out  # whole positions, so that no noise is in both parts
    train = s[..., ~test].ravel(), x[..., ~test].ravel()
    try:
        model = KINDS[kind].fit(*train, percentiles=percentiles, seed=seed, **options)
    except ValueError as error:
        raise UserError(f"{stack.name}: {error}") from None
    test_pairs = [torch.from_numpy(v[..., test].ravel()[:MAX_HELD]).float() for v in (s, x)]
    if not len(test_pairs[0]):
        raise UserError(f"{stack.name}: held_out={held_out} leaves no pixel for the test; raise it")
    model.held_out_nll = -float(model.log_likelihood(test_pairs[1], test_pairs[0]).mean())
    low, high = np.percentile(train[0], percentiles)
    log.info(
        f"{stack.name}: {kind} for signals {low:.4g} to {high:.4g}, held-out {model.held_out_nll:.4f} "
        f"nats/pixel on {len(test_pairs[0])} pixels"
    )
    _warn_of_range(s if meant is None else levels(meant), low, high)
    sample = slice(None, None, max(1, len(train[0]) // 300_000))
    return model, lambda path: noise_density(path, model, train[0][sample], train[1][sample], low, high)


Structured = CorrelatedNoise | AutoregressiveNoise


def _correlated(noise: np.ndarray, level: np.ndarray) -> Structured:
    return CorrelatedNoise.from_noise(*(torch.from_numpy(np.array(v))[:, None] for v in (noise, level)))


def _autoregressive(noise: np.ndarray, _: np.ndarray, **options: Any) -> Structured:
    return AutoregressiveNoise.fit(noise, **options)


def _fit_structured(
    stack: Stack,
    clean: Stack | None,
    _: Stack | None,
    *,
    fit: Callable[[np.ndarray, np.ndarray], Structured],
    dark: bool,
    held_out: float,
) -> Fitted:
    """Fits a model of correlated noise to one channel, and tests it on the bottom rows of every frame."""
    noise, level = noise_images(stack, clean, dark), signal_images(stack, clean, dark)  # (N, Y, X)
    height = noise.shape[-2] - max(16, round(held_out * noise.shape[-2]))
    try:
        model = fit(noise[:, :height], level[:, :height])
    except ValueError as error:
        raise UserError(f"{stack.name}: {error}") from None
    signal, test = (torch.from_numpy(np.array(v[:64, None, height:])) for v in (level, noise))
    white = GaussianNoise(float(noise[:, :height].std()))
    with torch.no_grad():
        nll, white_nll = (-float(m.log_likelihood(signal + test, signal).mean()) for m in (model, white))
    model.held_out_nll = nll  # pyright: ignore[reportArgumentType]  # torch's stub: Tensor or Module
    log.info(
        f"{stack.name}: {type(model).__name__}, held-out {nll:.4f} nats/pixel; white Gaussian noise: "
        f"{white_nll:.4f}"
    )
    return model, lambda path: noise_autocorrelation(path, model, noise, float(level.mean()))


def _warn_of_range(signal: np.ndarray, low: float, high: float) -> None:
    slack = 0.1 * (high - low)
    outside = ((signal < low - slack) | (signal > high + slack)).mean()
    if outside > 0.02:  # the default percentiles exclude 1 % intentionally
        least, most = np.percentile(signal, (0.1, 99.9))
        log.warning(
            f"signals reach from {least:.4g} to {most:.4g}, {100 * outside:.0f} % beyond the fitted "
            f"{low:.4g} to {high:.4g}, where the model is extrapolated; widen percentiles or add frames of "
            "that brightness"
        )


def _check(kind, method, signal, percentiles, context) -> None:
    low, high = percentiles or (0, 100)
    problems = [
        (kind not in (*KINDS, *STRUCTURED),
         f"kind: got {kind!r}, allowed are {', '.join([*KINDS, *STRUCTURED])}"),
        (method not in METHODS, f"method: got {method!r}, allowed are {', '.join(METHODS)}"),
        (method == "dark" and kind not in STRUCTURED,
         f"method: dark frames show the noise at no other signal; for kind {kind!r} pass another method"),
        (kind in STRUCTURED and method == "bootstrap" and signal is None,
         f"signal: got none, which kind {kind} needs; pass one, or use sampler JointNoiseVAE"),
        (signal is not None and method != "bootstrap",
         f"signal: method {method!r} computes its own; omit signal, or pass method bootstrap"),
        (not 0 <= low < high <= 100,
         f"percentiles: got {percentiles}; pass two numbers with 0 <= low < high <= 100"),
        (context not in get_args(Context),
         f"context: got {context!r}, allowed are {', '.join(get_args(Context))}"),
    ]  # fmt: skip
    for wrong, text in problems:
        if wrong:
            raise UserError(text)
