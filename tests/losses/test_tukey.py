import numpy as np
import pytest
import torch

from losses import L1, Tukey


def two_peaks(n: int) -> torch.Tensor:
    """n draws of one pixel: a broad peak with more draws, and a sharp one that is higher."""
    broad = torch.randn(n) < 0.2
    return torch.where(broad, 0.8 * torch.randn(n), 2.5 + 0.15 * torch.randn(n)).reshape(n, 1, 1, 1, 1)


def minimiser(loss: Tukey, draws: torch.Tensor, grid: torch.Tensor) -> int:
    return int(torch.stack([loss(at.reshape(1, 1, 1, 1), draws) for at in grid]).argmin())


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 2.0])
def test_the_minimiser_is_the_peak_of_the_triweight_density_estimate(c):
    draws, grid = two_peaks(601), torch.linspace(-1, 4, 401)
    values = draws.flatten().double().numpy()
    mad = np.median(np.abs(values - np.median(values)))
    u = (values - grid.double().numpy()[:, None]) / (c * 1.4826 * mad * 601 / 600.2)
    density = np.where(np.abs(u) < 1, (1 - u**2) ** 3, 0).sum(axis=1)
    assert minimiser(Tukey(c=c), draws, grid) == density.argmax()


def test_a_small_c_finds_the_mode_and_a_large_one_the_mean():
    draws, grid = two_peaks(20_001), torch.linspace(-1, 4, 101)
    assert grid[minimiser(Tukey(c=0.2), draws, grid)] == pytest.approx(2.5, abs=0.1)
    assert grid[minimiser(Tukey(c=50.0, start=50.0), draws, grid)] == pytest.approx(
        draws.mean().item(), abs=0.06
    )


def test_the_middle_of_two_equal_modes_repels():
    """The fixed point that the mean or median of such draws is."""
    draws = torch.tensor([-1.0, 1.0]).repeat(50).reshape(-1, 1, 1, 1, 1) + 0.05 * torch.randn(100, 1, 1, 1, 1)
    for c, left in [(0.8, True), (1.0, True), (1.3, True), (2.0, False)]:
        prediction = torch.full((1, 1, 1, 1), 0.05, requires_grad=True)
        optimizer = torch.optim.SGD([prediction], 0.2)
        for _ in range(300):
            optimizer.zero_grad()
            Tukey(c=c)(prediction, draws).backward()
            optimizer.step()
        assert prediction.item() == pytest.approx(1 if left else 0, abs=0.1)


def test_starts_as_l1_and_is_validated_as_what_it_becomes():
    draws, prediction = torch.randn(9, 2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    loss = Tukey(warmup=0.2, anneal=0.4)
    final = loss(prediction, draws)
    values = []
    for progress in (0.0, 0.1, 0.3, 0.5, 0.6, 0.9):
        loss.schedule(progress)
        values.append(loss(prediction, draws))
        assert loss.eval()(prediction, draws) == final
        loss.train()
    assert values[0] == values[1] == L1()(prediction, draws)
    assert len({value.item() for value in values[1:5]}) == 4
    assert values[4] == values[5] == final


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [1e-6, 0.1])
def test_a_prediction_far_from_all_draws_is_drawn_to_them(progress, spread):
    draws, prediction = spread * torch.randn(8, 1, 1, 2, 2), torch.full((1, 1, 2, 2), 5.0)
    loss = Tukey()
    loss.schedule(progress)
    loss(prediction.requires_grad_(), draws).backward()
    assert (prediction.grad * 4 >= 0.99).all()  # as steep as L1


def test_the_slope_is_that_of_l1_whatever_the_spread_and_c():
    for c, spread in [(0.5, 0.05), (1.0, 3.0), (5.0, 0.3)]:
        draws = spread * torch.randn(8, 100, 1, 1, 1)
        prediction = torch.linspace(-5, 5, 100).mul(spread).reshape(100, 1, 1, 1).requires_grad_()
        Tukey(c=c)(prediction, draws).backward()
        assert 0.3 < prediction.grad.abs().max() * 100 <= 1.001


def test_every_pixel_has_its_own_scale():
    draws, prediction = torch.randn(8, 1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(Tukey()(30 * prediction, 30 * draws), 30 * Tukey()(prediction, draws))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(c=0.0), "c=0.0"),
        (dict(c=20.0), "at most start"),
        (dict(warmup=0.8, anneal=0.3), "warmup=0.8"),
        (dict(anneal=0.0), "anneal"),
        (dict(min_scale=0.0), "min_scale"),
        (dict(min_draws=2), "min_draws=2"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Tukey(**arguments)
    assert "\n" not in str(caught.value)


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="got 3 draws, needs at least min_draws=8"):
        Tukey()(torch.zeros(1, 1, 2, 2), torch.zeros(3, 1, 1, 2, 2))
