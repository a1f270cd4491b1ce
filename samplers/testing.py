"""Checks that a sampler keeps the rules that distillation relies on, for the tests of your own samplers."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from samplers.base import PosteriorSampler
from students.dimensions import per_channel

SIZES = ((16, 16), (17, 23), (40, 9))
DEPTH = 5  # planes of volumes


def check_sampler(
    sampler: PosteriorSampler,
    noisy: Tensor | None = None,
    *,
    device: str | torch.device = "cpu",
    scale_equivariant: bool = False,
    sizes: Iterable[tuple[int, ...]] = SIZES,
) -> None:
    """Raises a ValueError that names the first rule of PosteriorSampler that `sampler` breaks.

    The checks work on copies of the sampler, prepared with `noisy`, and leave torch's random state unchanged.

    Args:
        sampler: sampler to be checked; not changed.
        noisy: images (B, C, *S) in raw counts, B >= 2, like those that the sampler is made for.
            Default: smooth images of 32 x 32 pixels around 100 counts, or volumes of such planes.
        device: device on which the checks run. Default: "cpu".
        scale_equivariant: whether to check also that draws follow a change of the images' gain and offset.
        sizes: further image sizes that the sampler must take, (Y, X) of volumes too; () to check the size of
            `noisy` alone.
    """
    if noisy is None:
        channels = getattr(sampler, "in_channels", getattr(sampler, "channels", 1))
        noisy = _example(channels + sampler.conditions)
        noisy = noisy if sampler.dims == 2 else noisy[:, :, None].repeat(1, 1, DEPTH, 1, 1)
    noisy, unprepared = noisy.to(device), copy.deepcopy(sampler).to(device)
    cuda = [noisy.device] if noisy.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.enable_grad():
        try:
            prepared = _prepared(unprepared, noisy)
            sizes = sizes if noisy.ndim == 4 else [(DEPTH, *size) for size in sizes]
            _check_shapes(prepared, noisy, sizes)
            for check in (_check_randomness, _check_side_effects, _check_units, _check_draws):
                check(prepared, noisy)
            _check_state(prepared, unprepared, noisy)
            if scale_equivariant:
                _check_equivariance(prepared, _prepared(unprepared, 3 * noisy + 50), noisy)
            _check_training_step(prepared, noisy)  # last, because it may change draws (batch norm)
        except ValueError as error:
            raise ValueError(f"{type(sampler).__name__}: {error}") from error


def _example(channels: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    signal = 100 + 20 * (y / 5).sin() * (x / 7 + torch.arange(2)[:, None, None, None]).cos()
    noise = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    return signal + 10 * noise


def _prepared(sampler: PosteriorSampler, noisy: Tensor) -> PosteriorSampler:
    sampler, axes = copy.deepcopy(sampler), [0, *range(2, noisy.ndim)]
    std, mean = torch.std_mean(noisy, dim=axes)
    mean, std = (per_channel(each, len(axes) - 1).cpu() for each in (mean, std))
    sampler.prepare(noisy.cpu(), mean, std)
    return sampler.to(noisy.device)


def _require(condition: bool | Tensor, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


def _seeded(sample: Callable[[], Tensor], seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return sample()


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))


def _check_shapes(sampler: PosteriorSampler, noisy: Tensor, sizes: Iterable[tuple[int, ...]]) -> None:
    for size in [tuple(noisy.shape[2:]), *sizes]:
        image = noisy.new_empty(*noisy.shape[:2], *size).normal_(float(noisy.mean()), float(noisy.std()))
        before = image.clone()
        for n in (1, 3):
            call = f"sample(noisy {tuple(image.shape)}, n={n})"
            try:
                draws = sampler.sample(image, n)
            except Exception as error:  # a sampler under test may raise anything, which the message reports
                reason = " ".join(repr(error).split())
                raise ValueError(f"sizes: {call} raised {reason}") from error
            is_tensor = isinstance(draws, Tensor)
            shape = tuple(draws.shape) if is_tensor else type(draws).__name__
            expected = (n, *sampler.draw_shape(image.shape))
            declared = f"out_channels={sampler.out_channels}, scale={sampler.scale}"
            _require(shape == expected, f"shapes: {call} gave {shape}, must be {expected} ({declared})")
            finite = draws.is_floating_point() and draws.isfinite().all()
            _require(finite, f"values: {call} gave draws that are not finite floats")
            same_device = draws.device == image.device
            _require(same_device, f"device: draws on {draws.device} of images on {image.device}")
            _require(torch.equal(image, before), f"input: {call} changed the images in place")


def _check_randomness(sampler: PosteriorSampler, noisy: Tensor) -> None:
    first, again = (_seeded(lambda: sampler.sample(noisy, 8)) for _ in range(2))
    next_call = sampler.sample(noisy, 8)
    rule = "independence: the 8 draws of one call are all the same"
    _require(not all(_same(draw, first[0]) for draw in first[1:]), rule)
    rule = "independence: two calls gave the same draws; use torch's random state and do not reset it"
    _require(not _same(first, next_call), rule)
    rule = "seeding: draws differ after the same torch.manual_seed; draw from torch's random state"
    _require(_same(first, again), rule)


def _check_side_effects(sampler: PosteriorSampler, noisy: Tensor) -> None:
    for training in (True, False):
        sampler.train(training)
        modes = [module.training for module in sampler.modules()]

        def check(when: str, modes: list[bool] = modes) -> None:
            unchanged = modes == [module.training for module in sampler.modules()]
            _require(unchanged, f"mode: train/eval mode changed {when}")
            _require(torch.is_grad_enabled(), f"grad mode: gradients are off {when}")

        draws = sampler.sample(noisy, 2)
        check("after sample")
        _require(not draws.requires_grad, "gradient: draws of sample require one; use no_grad")
        half_way = sampler.draws(noisy, 3)
        next(half_way)
        check("between two draws")
        del half_way
        check("after draws was abandoned")
    evaluated = _seeded(lambda: sampler.sample(noisy))
    trained = _seeded(lambda: sampler.train().sample(noisy))
    _require(_same(trained, evaluated), "mode: sample must draw in eval mode, whatever the mode")


def _check_units(sampler: PosteriorSampler, noisy: Tensor) -> None:
    images, _ = sampler.split(noisy)
    if sampler.out_channels not in (None, images.shape[1]):
        return  # the parts of an image may have any brightness
    drawn, mean, std = (float(v) for v in (sampler.sample(noisy, 8).mean(), images.mean(), images.std()))
    rule = f"units: draws have mean {drawn:.4g}, the images {mean:.4g} +- {std:.4g}; both are raw counts"
    _require(abs(drawn - mean) < 3 * std, rule)


def _check_draws(sampler: PosteriorSampler, noisy: Tensor) -> None:
    together, one_by_one = sampler.sample(noisy, 8), list(sampler.draws(noisy, 8))
    shapes = [tuple(draw.shape) for draw in one_by_one]
    rule = f"draws: draws(noisy, 8) gave shapes {shapes}, must be 8 of {tuple(together.shape[1:])}"
    _require(shapes == [tuple(together.shape[1:])] * 8, rule)
    one_by_one = torch.stack(one_by_one)
    _require(not one_by_one.requires_grad, "gradient: draws of draws() require one; use no_grad")
    distinct = not all(_same(draw, one_by_one[0]) for draw in one_by_one[1:])
    _require(distinct, "draws: draws(noisy, 8) gave the same draw 8 times")
    levels = [draws.flatten(1).mean(dim=1).double() for draws in (together, one_by_one)]
    spread = ((levels[0].var() + levels[1].var()) / 8).sqrt() + 1e-3 * float(noisy.std())
    gap = abs(levels[0].mean() - levels[1].mean())
    _require(gap < 6 * spread, f"draws: their mean differs by {float(gap):.4g} from that of sample")


def _check_state(sampler: PosteriorSampler, unprepared: PosteriorSampler, noisy: Tensor) -> None:
    state, loaded = copy.deepcopy(sampler.state_dict()), copy.deepcopy(unprepared)
    for tensor in loaded.state_dict().values():  # shares their memory: only loaded values remain
        tensor.zero_()
    try:
        loaded.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise ValueError(f"state_dict: cannot be loaded: {line}") from error
    before = _seeded(lambda: sampler.sample(noisy))
    after = _seeded(lambda: loaded.sample(noisy))
    rule = "state_dict: a copy that loads it draws otherwise; keep all state in parameters and buffers"
    _require(_same(before, after), rule)


def _check_training_step(sampler: PosteriorSampler, noisy: Tensor) -> None:
    if not sampler.trainable:
        _check_frozen(sampler, noisy)
        return
    twin, other, evaluated = (copy.deepcopy(sampler.train()) for _ in range(3))
    torch.manual_seed(1)
    loss, draw = _step(sampler, noisy)
    later = _step(sampler, noisy)[1]
    scalar = loss.ndim == 0 and loss.isfinite() and loss.requires_grad
    _require(scalar, "training_step: the loss must be a finite scalar with a gradient")
    parameters = [p for p in sampler.parameters() if p.requires_grad]
    gradients = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    finite = all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
    _require(finite, "training_step: the loss's gradient is absent, zero or not finite")
    shape, expected = tuple(draw.shape), tuple(sampler.sample(noisy).shape[1:])
    _require(shape == expected, f"training_step: the draw has shape {shape}, must be {expected}")
    _require(not _same(draw, later), "training_step: two steps made the same draw")
    again = _seeded(lambda: _step(twin, noisy)[1])
    _require(_same(draw, again), "training_step: it made another draw from the same random state")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        changed = _seeded(lambda: _step(other, noisy)[1])
        rule = "training_step: the draw does not depend on the parameters; return the draw of its own pass"
        _require(not _same(draw, changed), rule)
        loss, _ = _step(evaluated.eval(), noisy)  # as in validation
    _require(loss.ndim == 0 and loss.isfinite(), "training_step: no finite loss in eval mode")


def _check_frozen(sampler: PosteriorSampler, noisy: Tensor) -> None:
    try:
        sampler.training_step(noisy)
    except NotImplementedError:
        return
    rule = "training_step: there is nothing to train; leave it out, and the sampler is frozen"
    _require(any(True for _ in sampler.parameters()), rule)


def _step(sampler: PosteriorSampler, noisy: Tensor) -> tuple[Tensor, Tensor]:
    try:
        loss, draw = sampler.training_step(noisy)
    except (NotImplementedError, TypeError) as error:
        rule = f"training_step: must return (loss, draw), or not be defined; it raised {error!r}"
        raise ValueError(rule) from error
    return torch.as_tensor(loss), draw


def _check_equivariance(sampler: PosteriorSampler, scaled: PosteriorSampler, noisy: Tensor) -> None:
    expected = 3 * _seeded(lambda: sampler.sample(noisy)) + 50
    draws = _seeded(lambda: scaled.sample(3 * noisy + 50))
    close = (draws - expected).abs().max() < 1e-2 * expected.std()
    _require(close, "equivariance: draws of 3 x + 50 are not 3 times the draws of x, plus 50")
