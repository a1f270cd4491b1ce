import pytest
import torch

from students import UNet


def test_parameter_counts_are_the_papers_and_the_published_codes():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(UNet()) == 15_692_065
    assert count(UNet(shared_convs=True)) == 11_764_577


@pytest.mark.parametrize(("filters", "depth"), [(1, 1), (4, 3), (3, 6), (20, 2)])
def test_any_width_and_depth_keeps_the_size_and_sets_the_channels(filters, depth):
    x = torch.rand(2, 3, 2 * 2**depth, 3 * 2**depth)
    assert UNet(3, 5, depth=depth, filters=filters)(x).shape == (2, 5, *x.shape[2:])


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"filters": 0}])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        UNet(**wrong)


def test_every_parameter_learns():
    unet = UNet(depth=2, filters=4)
    unet(torch.rand(2, 1, 16, 16)).square().mean().backward()
    assert all(p.grad is not None for p in unet.parameters())
