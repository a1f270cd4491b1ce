from itertools import pairwise

import pytest
import torch
from torch import nn

from distill import DirectDenoiser
from losses import L1, L2, MeanVariance, Quantiles


def fitted(loss, draws: torch.Tensor) -> dict[str, torch.Tensor]:
    """The maps of the prediction that minimises the loss."""
    shape = (draws.shape[1], len(loss.outputs) * draws.shape[2], *draws.shape[3:])
    prediction = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        loss(prediction, draws).backward()
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in loss.maps(prediction).items()}


def test_quantiles_finds_the_quantiles_of_each_channel():
    draws = torch.randn(501, 2, 2, 2, 1).exp()
    maps = fitted(Quantiles((0.95, 0.05, 0.25, 0.5)), draws)
    assert list(maps) == ["median", "q05", "q25", "q95"]
    for value, level in zip(maps.values(), (0.5, 0.05, 0.25, 0.95), strict=True):
        torch.testing.assert_close(value, draws.quantile(level, dim=0), atol=0.05, rtol=0.02)


def test_mean_variance_finds_both():
    draws = torch.randn(501, 2, 2, 2, 1).exp() * torch.tensor([0.1, 1.0]).reshape(1, 2, 1, 1, 1)
    maps = fitted(MeanVariance(), draws)
    assert list(maps) == ["mean", "std"]
    torch.testing.assert_close(maps["mean"], draws.mean(dim=0), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(maps["std"], draws.std(dim=0, correction=0), atol=1e-3, rtol=1e-2)


def test_the_central_map_learns_as_if_it_were_alone():
    draws, prediction = torch.randn(4, 2, 1, 3, 3), torch.randn(2, 3, 3, 3)
    for loss, alone, share in [(Quantiles(), L1(), 1 / 3), (MeanVariance(), L2(), 1)]:
        both = prediction[:, : len(loss.outputs)].clone().requires_grad_()
        loss(both, draws).backward()
        central = prediction[:, :1].clone().requires_grad_()
        alone(central, draws).backward()
        torch.testing.assert_close(both.grad[:, :1], share * central.grad)
        assert both.grad[:, 1:].abs().min() > 0


def test_quantiles_never_cross():
    loss = Quantiles((0.025, 0.16, 0.5, 0.84, 0.975))
    assert loss.outputs == ("median", "q2.5", "q16", "q84", "q97.5")
    maps = loss.maps(10 * torch.randn(8, 10, 5, 5))
    ordered = [maps[name] for name in ("q2.5", "q16", "median", "q84", "q97.5")]
    assert all((low <= high).all() for low, high in pairwise(ordered))
    assert ordered[0].shape == (8, 2, 5, 5)


def test_levels_without_a_median_have_a_central_one():
    assert Quantiles((0.1, 0.4)).outputs == ("q40", "q10")
    assert Quantiles([0.9]).outputs == ("q90",)
    assert Quantiles((0.07, 0.29)).outputs == ("q29", "q07")


def test_in_raw_counts_quantiles_are_places_and_a_std_is_a_width():
    for loss in (Quantiles(), MeanVariance()):
        backbone = nn.Conv2d(1, len(loss.outputs), 1)
        denoiser = DirectDenoiser(backbone, loss)
        denoiser.prepare(torch.full((1, 1, 1), 500.0), torch.full((1, 1, 1), 20.0))
        x = 500 + 20 * torch.randn(1, 1, 4, 4)
        standardized, counts = loss.maps(denoiser.predict(x)), denoiser.maps(x)
        for name, value in standardized.items():
            torch.testing.assert_close(counts[name], 20 * value + (0 if name == "std" else 500))
        assert denoiser(x).equal(counts[loss.outputs[0]])


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.0, 0.5), (0.5, 95)])
def test_wrong_levels_are_refused(levels):
    with pytest.raises(ValueError, match="Quantiles: got levels="):
        Quantiles(levels)


def test_a_std_without_a_floor_is_refused():
    with pytest.raises(ValueError, match="min_std must be positive, got 0"):
        MeanVariance(0)
