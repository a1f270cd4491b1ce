import inspect
import json
import math

import pytest
import torch

from samplers import AutoregressiveNoise
from samplers.noise import autocorrelation

TINY = {"filters": 4, "dilations": (1, 2), "components": 2}
RHO = 0.8


def tiny(context: str, **more) -> AutoregressiveNoise:
    torch.manual_seed(0)
    model = AutoregressiveNoise(context, **(TINY | more))
    model.mean.fill_(3.0)
    model.std.fill_(7.0)
    return model


def ar1(shape: tuple[int, ...], std: float = 7.0, seed: int = 0) -> torch.Tensor:
    """Stationary noise with correlation RHO^lag along the last dimension."""
    white = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = [white[..., 0]]
    for w in range(1, shape[-1]):
        x.append(RHO * x[-1] + math.sqrt(1 - RHO**2) * white[..., w])
    return std * torch.stack(x, dim=-1)


@pytest.mark.parametrize("context", ["image", "row", "column"])
@pytest.mark.parametrize(("h", "w"), [(0, 0), (9, 11), (14, 23), (23, 0), (0, 23)])
def test_prediction_of_a_pixel_depends_on_earlier_ones_only(context, h, w):
    """The mixture's parameters, not its density, which has the pixel itself in it."""
    model, size, reach = tiny(context), 24, 16
    assert model.net.reach == reach
    x = torch.randn(1, 1, size, size, requires_grad=True)
    seen = model._turned(x)
    at = model._turned(model.net(seen))[0, :, h, w]
    (slope,) = torch.autograd.grad(at.square().sum(), x)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    if context == "image":
        allowed = (rows < h) | ((rows == h) & (columns < w))
        allowed &= (h - rows <= reach) & (w - columns <= reach) & (columns - w <= reach // 2)
    elif context == "row":
        allowed = (rows == h) & (columns < w) & (w - columns <= reach)
    else:
        allowed = (columns == w) & (rows < h) & (h - rows <= reach)
    assert (slope[0, 0][~allowed] == 0).all()
    if allowed.sum() > 10:  # and it does use what it may
        assert (slope[0, 0][allowed] != 0).float().mean() > 0.6


def test_published_receptive_field_and_size():
    model = AutoregressiveNoise(filters=128, dilations=(1, 2, 4, 8, 16), components=10)
    assert model.net.reach == 128
    assert sum(p.numel() for p in model.parameters()) == 5_422_110


@pytest.mark.parametrize("context", ["image", "row", "column"])
def test_conditional_density_of_a_pixel_integrates_to_one(context):
    model = tiny(context)
    noisy = (20 + 7 * torch.randn(1, 1, 6, 8)).repeat(4001, 1, 1, 1)
    noisy[:, 0, 4, 5] = torch.linspace(-180, 220, 4001)
    density = model.log_likelihood(noisy, torch.full_like(noisy, 20.0))[:, 0, 4, 5].double().exp()
    assert density.sum() * 0.1 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("context", ["image", "row", "column"])
def test_gradient_is_exact_through_the_context_too(context):
    model, height, width = tiny(context), 5, 6
    noisy = 100 + 7 * torch.randn(1, 1, height, width)
    signal = (100 + torch.randn(1, 1, height, width)).requires_grad_()
    value = model.log_likelihood(noisy, signal)
    (slope,) = torch.autograd.grad(value.sum(), signal)
    (own,) = torch.autograd.grad(model.log_likelihood(noisy, signal)[0, 0, 2, 2], signal)
    step = 0.05 * torch.eye(height * width).view(-1, 1, height, width)
    with torch.no_grad():
        total = lambda s: model.log_likelihood(noisy.expand_as(s), s).double().sum((1, 2, 3))
        expected = (total(signal + step) - total(signal - step)) / 0.1
    torch.testing.assert_close(slope.flatten().double(), expected, atol=1e-3, rtol=1e-2)
    assert own[0, 0, 2, 2] != 0 and own.ne(0).sum() > 1 and not own[0, 0, 3:, 3:].any()


def test_shapes_precision_rebuilding_and_frozen_weights():
    model, noisy, signal = tiny("row"), 50 * torch.rand(2, 1, 4, 5), 50 * torch.rand(3, 2, 1, 4, 5)
    full = model.log_likelihood(noisy, signal)
    assert full.shape == signal.shape and full.dtype == torch.float32
    torch.testing.assert_close(full[1], model.log_likelihood(noisy, signal[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full, model.log_likelihood(noisy, signal))
    assert not any(p.requires_grad for p in model.parameters())
    arguments = {name: getattr(model, name) for name in inspect.signature(type(model)).parameters}
    again = type(model)(**json.loads(json.dumps(arguments)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(full, again.log_likelihood(noisy, signal))
    assert model.log_likelihood(torch.zeros(1, 1), torch.zeros(1, 1)).isfinite()
    assert model.log_likelihood(torch.full((1, 3, 3), 1e5), torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("context", ["image", "row", "column"])
def test_samples_follow_the_density(context, monkeypatch):
    """Whatever a sampled pixel was drawn from is what the whole image says of it."""
    model, drawn = tiny(context, dilations=(1,)), []
    draw = model.net.draw
    monkeypatch.setattr(model.net, "draw", lambda p: drawn.append(p) or draw(p))
    signal = torch.full((2, 1, 10, 13), 50.0)
    noise = model._turned((model.sample(signal) - signal - model.mean) / model.std)
    whole = model.net(noise)
    if context == "image":
        drawn = torch.stack([p[..., 0, 0] for p in drawn], -1).unflatten(-1, (10, 13))
    else:
        drawn = torch.cat(drawn, -1)
    torch.testing.assert_close(drawn, whole, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def fitted() -> AutoregressiveNoise:
    return AutoregressiveNoise.fit(
        ar1((8, 48, 48)), "row", filters=8, dilations=(1,), steps=300, patch_size=32,
        lr=1e-2, seconds=30,
    )  # fmt: skip


def test_fit_beats_white_noise_by_what_the_correlation_is_worth(fitted):
    noise = ar1((8, 48, 48), seed=1)
    gained = fitted.log_likelihood(noise, torch.zeros(1)).mean()
    white = torch.distributions.Normal(0, noise.std()).log_prob(noise).mean()
    theory = -0.5 * math.log(1 - RHO**2) * 47 / 48  # the first pixel of a row has no neighbour
    assert gained - white == pytest.approx(theory, abs=0.04)


def test_sampled_noise_is_correlated_like_the_real_one(fitted):
    torch.manual_seed(0)
    signal = torch.full((8, 1, 48, 48), 100.0)
    sampled = autocorrelation(fitted.sample(signal) - signal, (1, 2))
    expected = torch.tensor([0, RHO**2, RHO, 1, RHO, RHO**2, 0]).double()
    torch.testing.assert_close(sampled[1], expected[1:-1], atol=0.05, rtol=0)
    assert sampled[0].abs().max() < 0.05
    assert (fitted.sample(signal) - signal).std() == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize("context", ["image", "column"])
def test_fit_other_contexts_and_fit_pairs_repeat_under_a_seed(context):
    signal = 100 * torch.rand(40, 40)
    noisy = signal + ar1((2, 40, 40)).mT
    options = dict(steps=4, validate_every=2, patch_size=16, **TINY)
    model = AutoregressiveNoise.fit_pairs(noisy, signal, context, **options)
    before = torch.get_rng_state()
    again = AutoregressiveNoise.fit(noisy - signal, context, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(model.log_likelihood(noisy, signal), again.log_likelihood(noisy, signal))
    assert model.std == pytest.approx(float((noisy - signal).std()))
    assert not any(p.requires_grad for p in model.parameters())


def test_autocorrelation_is_that_of_the_pairs():
    noise = torch.randn(3, 1, 9, 7).double() + 5
    got = autocorrelation(noise, (2, 3))
    assert got.shape == (5, 7) and got[2, 3] == 1
    x = noise[:, 0] - noise.mean()
    expected = (x[:, 2:, :-1] * x[:, :-2, 1:]).mean() / x.square().mean()
    torch.testing.assert_close(got[4, 2], expected)
    torch.testing.assert_close(got, got.flip(0, 1))
    with pytest.raises(ValueError, match="below the size"):
        autocorrelation(noise, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AutoregressiveNoise("rows"), "image, row, column"),
        (lambda: AutoregressiveNoise(kernel=4), "odd"),
        (lambda: AutoregressiveNoise.fit(torch.zeros(3, 9, 9)), "constant"),
        (lambda: AutoregressiveNoise.fit(torch.rand(3, 2, 9, 9)), "one channel"),
        (lambda: AutoregressiveNoise.fit(torch.rand(3, 40, 12)), "smaller dilations"),
        (lambda: AutoregressiveNoise.fit(torch.rand(1, 1, 99), "row"), "larger frames"),
        (lambda: AutoregressiveNoise.fit(torch.rand(9, 99), steps=0), "above 0"),
        (lambda: AutoregressiveNoise.fit_pairs(torch.rand(9, 99), torch.rand(8)), "broadcast"),
    ],
)
def test_bad_arguments_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
