import pytest
import torch

from losses import L1, L2, Huber, Loss, MeanVariance, Quantiles, Tukey, WeightedSum


class Recorder(L2):
    def __init__(self):
        super().__init__()
        self.told = []

    def prepare(self, noisy):
        self.told.append(noisy.shape)

    def schedule(self, progress):
        self.told.append(progress)


def test_is_the_weighted_sum_with_the_maps_of_the_first():
    prediction, draws = torch.randn(2, 1, 4, 4), torch.randn(8, 2, 1, 4, 4)
    loss = WeightedSum([L1(), L2()], [1, 0.1])
    expected = L1()(prediction, draws) + 0.1 * L2()(prediction, draws)
    torch.testing.assert_close(loss(prediction, draws), expected)
    torch.testing.assert_close(WeightedSum([L2(), L2()])(prediction, draws), 2 * L2()(prediction, draws))
    assert list(loss.maps(prediction)) == ["median"] and loss.outputs == ("median",)
    assert WeightedSum([MeanVariance()]).maps(torch.zeros(1, 2, 4, 4))["std"].min() > 0


def test_every_loss_is_prepared_and_told_of_the_schedule():
    losses = [Recorder(), Recorder()]
    both = WeightedSum(losses)
    both.prepare(torch.zeros(3, 1, 8, 8))
    both.schedule(0.5)
    assert all(loss.told == [(3, 1, 8, 8), 0.5] for loss in losses)
    assert WeightedSum([L1(), Tukey(min_draws=5)]).min_draws == 5


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ([], None, "at least one loss"),
        ([L1(), L2()], [1.0], "a positive weight for each"),
        ([L1(), Huber()], [1.0, -1.0], "a positive weight for each"),
        ([L1(), Quantiles()], None, "equally many outputs"),
    ],
)
def test_what_does_not_fit_is_one_line(losses: list[Loss], weights, message):
    with pytest.raises(ValueError, match=message) as caught:
        WeightedSum(losses, weights)
    assert "\n" not in str(caught.value)
