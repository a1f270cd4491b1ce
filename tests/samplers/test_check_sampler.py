import pytest
import torch
from torch import nn

from samplers import (
    HDN,
    AutoregressiveNoise,
    BimodalPixels,
    DivNoising,
    Ensemble,
    FunctionSampler,
    GaussianNoise,
    JointNoiseVAE,
    LinearGaussianField,
    MonteCarloDropout,
    PosteriorSampler,
    SkewedPixels,
    StructuredNoiseVAE,
)
from samplers.testing import check_sampler

SMALL = {"latents": 2, "filters": 4, "blocks": 1, "patch_size": 16}
TINY_NETWORK = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(8, 1, 1))


class Smoothed(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.blur = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, noisy):
        return self.blur(noisy)


OURS = {
    "HDN": lambda: HDN(levels=2, **SMALL),
    "HDN, dropout, 2 channels": lambda: HDN(GaussianNoise(9.0), channels=2, levels=2, **SMALL),
    "HDN3-6": lambda: HDN(levels=3, active_levels=range(2, 4), **SMALL),
    "DivNoising": lambda: DivNoising(filters=4, latents=4),
    "function": lambda: FunctionSampler(lambda noisy: noisy + 9 * torch.randn_like(noisy)),
    "function of n": lambda: FunctionSampler(lambda noisy, n: noisy + torch.randn(n, *noisy.shape)),
    "Gaussian": LinearGaussianField,
    "skewed": SkewedPixels,
    "bimodal": BimodalPixels,
    "Ensemble": lambda: Ensemble([Smoothed(1), Smoothed(3), Smoothed(5)]),
    "dropout": lambda: MonteCarloDropout(TINY_NETWORK, mean=100.0, std=20.0),
    "structured": lambda: StructuredNoiseVAE(AutoregressiveNoise("row", filters=4), levels=2, **SMALL),
    "joint": lambda: JointNoiseVAE(levels=2, code=4, **SMALL),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_the_rules(name):
    before = torch.random.get_rng_state()
    sampler = OURS[name]()
    state = {k: v.clone() for k, v in sampler.state_dict().items()}
    before = torch.random.get_rng_state()
    check_sampler(sampler, scale_equivariant=isinstance(sampler, (HDN, DivNoising)))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in sampler.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", sorted(OURS.keys() - {"function of n"}))
def test_ours_keep_the_rules_on_a_gpu(name):
    check_sampler(OURS[name](), device="cuda")


class Trainable(PosteriorSampler):
    """A pixel-wise sampler that keeps all the rules; each test breaks one."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def _draw(self, noisy):
        return self.gain * noisy + 5 * torch.randn_like(noisy)

    @torch.no_grad()
    def sample(self, noisy, n=1):
        return torch.stack([self._draw(noisy) for _ in range(n)])

    def training_step(self, noisy):
        draw = self._draw(noisy)
        return (draw - noisy).square().mean(), draw


def broken(**overrides) -> type:
    return type("Broken", (Trainable,), overrides)


def no_grad(function):
    return torch.no_grad()(function)


def leaks(self, noisy, n):
    with torch.no_grad():
        for _ in range(n):
            yield self._draw(noisy)


def leaves_eval_mode(self, noisy, n=1):
    self.eval()
    return Trainable.sample(self, noisy, n)


def draws_as_it_trains(self, noisy, n=1):
    return Trainable.sample(self, noisy, n) + 10 * self.training


def in_place(self, noisy, n=1):
    draws = Trainable.sample(self, noisy, n)
    noisy.add_(1)
    return draws


def keeps_a_number(self, noisy, mean, std):
    self.offset = float(mean)


def private_random_state(self, noisy, n=1):
    generator = torch.Generator()
    generator.seed()
    return noisy + torch.empty(n, *noisy.shape).normal_(generator=generator)


def resets_the_seed(self, noisy, n=1):
    torch.manual_seed(0)
    return Trainable.sample(self, noisy, n)


BREAKS = {
    "shapes": {"sample": lambda self, noisy, n=1: Trainable.sample(self, noisy, n).squeeze(0)},
    "sizes": {"_draw": lambda self, noisy: Trainable._draw(self, noisy.unflatten(-1, (-1, 2)).flatten(-2))},
    "values": {"sample": lambda self, noisy, n=1: Trainable.sample(self, noisy / 0, n)},
    "independence: the 8": {"_draw": lambda self, noisy: noisy * self.gain},
    "independence: two": {"sample": resets_the_seed},
    "seeding": {"sample": private_random_state},
    "mode: train/eval": {"sample": leaves_eval_mode},
    "mode: sample must": {"sample": draws_as_it_trains},
    "grad mode": {"draws": leaks},
    "gradient: draws of sample": {
        "sample": lambda self, noisy, n=1: torch.stack([self._draw(noisy) for _ in range(n)])
    },
    "gradient: draws of draws": {"draws": lambda self, noisy, n: (self._draw(noisy) for _ in range(n))},
    "input": {"sample": in_place},
    "units": {"sample": lambda self, noisy, n=1: Trainable.sample(self, noisy, n) / 255},
    "draws: draws": {"draws": lambda self, noisy, n: iter(self.sample(noisy, n - 1))},
    "draws: .* the same draw 8 times": {"draws": lambda self, noisy, n: iter([self.sample(noisy)[0]] * n)},
    "draws: their mean": {"draws": lambda self, noisy, n: iter(self.sample(noisy, n) + 20)},
    "state_dict: a copy that": {
        "prepare": keeps_a_number,
        "sample": lambda self, noisy, n=1: Trainable.sample(self, noisy, n) + getattr(self, "offset", 0) / 9,
    },
    "training_step: must return": {"training_step": lambda self, noisy: None},
    "training_step: the loss must": {"training_step": no_grad(Trainable.training_step)},
    "training_step: the loss's": {
        "training_step": lambda self, noisy: (0 * self.gain, self._draw(noisy))
    },
    "training_step: the draw has": {
        "training_step": lambda self, noisy: (self.gain, self._draw(noisy)[:1])
    },
    "training_step: two steps": {"training_step": lambda self, noisy: (self.gain, self.gain * noisy)},
    "training_step: it made another draw": {
        "training_step": lambda self, noisy: (self.gain, self.gain * private_random_state(self, noisy)[0])
    },
    "training_step: the draw does not": {
        "training_step": lambda self, noisy: (self.gain, noisy + torch.randn_like(noisy))
    },
    "training_step: no finite": {
        "training_step": lambda self, noisy: (
            self.gain if self.training else self.gain / 0, self._draw(noisy)
        )
    },
}  # fmt: skip


def test_the_example_keeps_the_rules():
    check_sampler(Trainable())


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_named_in_one_line(rule):
    with pytest.raises(ValueError, match=rule) as error:
        check_sampler(broken(**BREAKS[rule])())
    assert str(error.value).startswith("Broken: ") and "\n" not in str(error.value)


def test_a_step_without_weights_is_no_step():
    class NothingToTrain(FunctionSampler):
        def training_step(self, noisy):
            return torch.zeros(()), noisy

    with pytest.raises(ValueError, match="nothing to train"):
        check_sampler(NothingToTrain(lambda noisy: noisy + torch.randn_like(noisy)))


def test_equivariance_is_checked_where_it_is_claimed():
    with pytest.raises(ValueError, match="equivariance"):
        check_sampler(Trainable(), scale_equivariant=True)


def test_ones_own_images_and_sizes():
    volumes = 100 + 10 * torch.randn(2, 1, 4, 6, 8)
    check_sampler(Trainable(), volumes, sizes=[(3, 5, 7)])
