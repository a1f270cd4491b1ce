import pytest
import torch
from torch import nn

from distill import DirectDenoiser
from losses import L2, Loss
from students import UNet
from students.padding import pad_to_multiple


class Spread(Loss):
    outputs = ("mean", "std")

    def forward(self, prediction, draws):
        return prediction.mean()


class Twice(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.ones_like(x)], dim=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (17, 31), (64, 64)])
def test_any_size_in_the_same_size_out(size):
    denoiser = DirectDenoiser(UNet(filters=2), L2()).eval()
    assert denoiser(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_padding_reflects_as_often_as_needed():
    x = torch.arange(3.0).view(1, 1, 1, 3)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_to_multiple(torch.rand(1, 1, 16, 24), 8).shape == (1, 1, 16, 24)


def test_raw_counts_at_both_ends():
    denoiser = DirectDenoiser(Twice(), Spread())
    denoiser.prepare(torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 5.0))
    noisy = 100 + torch.rand(1, 1, 4, 4)
    maps = denoiser.maps(noisy)
    torch.testing.assert_close(maps["mean"], noisy)
    torch.testing.assert_close(maps["std"], torch.full_like(noisy, 5.0))  # a spread: not shifted
    torch.testing.assert_close(denoiser(noisy), noisy)
