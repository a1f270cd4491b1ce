import pytest
import torch

from losses import L1, L2, Huber


@pytest.mark.parametrize(
    ("loss", "functional"),
    [
        (L2(), lambda draws: draws.mean(0)),
        (L1(), lambda draws: draws.quantile(0.5, dim=0)),
        (Huber(delta=1e3), lambda draws: draws.mean(0)),
        (Huber(delta=1e-3), lambda draws: draws.quantile(0.5, dim=0)),
    ],
)
def test_the_minimiser_is_the_functional(loss, functional):
    torch.manual_seed(0)
    draws = torch.randn(501, 4, 1, 2, 2).exp()  # skewed: mean and median differ
    prediction = torch.ones(4, 1, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (loss(prediction, draws) / (1e-3 if getattr(loss, "delta", 1) < 1 else 1)).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(prediction.detach(), functional(draws), atol=0.02, rtol=0)


def test_one_map_named_after_what_it_is():
    prediction = torch.rand(2, 3, 4, 4)
    for loss, name in [(L1(), "median"), (L2(), "mean"), (Huber(), "huber")]:
        maps = loss.maps(prediction)
        assert list(maps) == [name] and maps[name].equal(prediction)


def test_huber_refuses_a_delta_that_is_not_positive():
    with pytest.raises(ValueError, match="delta"):
        Huber(0)
