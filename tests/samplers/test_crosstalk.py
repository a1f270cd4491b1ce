"""Noise that spills into neighbouring pixels, and how its light is split."""

import pytest
import torch

from distill import specimen
from samplers import GaussianNoise, PhotonNoise
from samplers.noise.crosstalk import CrosstalkNoise
from samplers.noise.split import LightSplit

SIGNAL = torch.full((48, 1, 64, 64), 60.0)
WHITE = [GaussianNoise(10.0), PhotonNoise(4.0, 0.0, 1.0, 3.0), PhotonNoise(4.0, 0.0, 1.0, step=1.0)]


def covariance(a: torch.Tensor, b: torch.Tensor, down: int = 0, right: int = 0) -> float:
    return float((a * b.roll((-down, -right), (2, 3)))[..., 2:-2, 2:-2].mean())


@pytest.mark.parametrize("white", WHITE, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("neighbours", [(0.0, 0.05), (0.1, -0.15)])
def test_neighbours_are_correlated_and_the_parts_of_a_split_are_independent(white, neighbours):
    torch.manual_seed(0)
    noise, variance = CrosstalkNoise(white, *neighbours), float(white.variance(SIGNAL).mean())
    seen = noise.sample(SIGNAL)
    first, second = (each - SIGNAL for each in noise.split(seen, 0.6))
    seen = seen - SIGNAL
    assert covariance(seen, seen) == pytest.approx(variance, rel=0.03)
    assert covariance(first, first) == pytest.approx(variance / 0.6, rel=0.03)
    for way, wanted in zip([(1, 0), (0, 1)], neighbours, strict=True):
        assert covariance(seen, seen, *way) == pytest.approx(wanted * variance, abs=0.015 * variance)
        assert abs(covariance(first, second, *way)) < 0.015 * variance
    assert abs(covariance(first, second)) < 0.015 * variance
    rounding = 1.0 if getattr(white, "step", None) else 0.0
    torch.testing.assert_close(0.6 * first + 0.4 * second, seen, atol=0.01 * variance**0.5 + rounding, rtol=0)


def test_it_is_found_in_images_and_their_patches_are_not_transposed():
    torch.manual_seed(0)
    signal = torch.from_numpy(specimen(4, 256).clean)[:, None].float()
    noise = PhotonNoise(2.0, -150.0, 3.0)
    light = LightSplit.fit(CrosstalkNoise(noise, 0.0, 0.1).sample(signal))
    (found,) = light.models
    assert isinstance(found, CrosstalkNoise) and not light.noise.isotropic
    assert found.neighbours == pytest.approx((0.0, 0.1), abs=0.025)
    assert set(light.noise.mirrors) == {"y", "x", "yx"}
    assert not isinstance(LightSplit.fit(noise.sample(signal)).models[0], CrosstalkNoise)


def test_strong_correlation_is_refused():
    with pytest.raises(ValueError, match=r"correlations 0.0, 0.3; takes -0.2 to 0.2; fit a CorrelatedNoise"):
        CrosstalkNoise(GaussianNoise(1.0), 0.0, 0.3)
