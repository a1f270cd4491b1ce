import pytest
import torch

from losses import EnergyScore


def test_least_where_the_samples_have_the_draws_distribution():
    draws = 3 + 2 * torch.randn(4, 256, 1, 16, 16)

    def score(mean, std):
        return EnergyScore(samples=4)(mean + std * torch.randn(256, 4, 16, 16), draws).item()

    best = score(3, 2)
    assert best < min(score(2.5, 2), score(3.5, 2), score(3, 1.5), score(3, 2.5), score(3, 0.1))


def test_windows_see_correlations_that_single_pixels_do_not():
    draws = torch.randn(4, 512, 1, 1, 1).expand(4, 512, 1, 8, 8)  # all pixels of a draw are equal
    together = torch.randn(512, 2, 1, 1).expand(512, 2, 8, 8)
    apart = torch.randn(512, 2, 8, 8)
    pixels, blocks = EnergyScore(windows=[1]), EnergyScore(windows=[8])
    assert abs(pixels(together, draws) - pixels(apart, draws)) < 0.03
    assert blocks(together, draws) < blocks(apart, draws) - 0.1


def test_gradients_are_finite_where_samples_coincide():
    prediction = torch.zeros(2, 2, 8, 8, requires_grad=True)
    EnergyScore()(prediction, torch.zeros(1, 2, 1, 8, 8)).backward()
    assert prediction.grad.isfinite().all()


def test_channels_and_outputs():
    loss = EnergyScore(samples=3)
    assert loss.outputs == ("draw", "draw2", "draw3")
    assert loss(torch.randn(2, 6, 16, 16), torch.randn(1, 2, 2, 16, 16)).shape == ()
    for arguments in ({"samples": 1}, {"windows": [0]}, {"windows": []}):
        with pytest.raises(ValueError, match="EnergyScore: got samples="):
            EnergyScore(**arguments)
