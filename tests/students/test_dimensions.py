"""Networks of images are what they were, and those of volumes are built alike."""

import pytest
import torch
import torch.nn.functional as F

from samplers import HDN, LIGHT, DivNoising, GaussianNoise
from samplers.testing import check_sampler
from students import LightUNet, UNet
from students.dimensions import as_planes, shuffled, unshuffled

# Sums of the weights and mean absolute outputs of seed 0, as networks of images alone have them.
NETWORKS = {
    "light": (lambda **o: LightUNet(width=16, depth=2, **o), 4.4923591187002785, 0.2881582961645866),
    "separable": (
        lambda **o: LightUNet(width=16, depth=2, separable=True, scale=2, **o),
        17.230359720266733,
        0.11572512357482385,
    ),
    "unet": (lambda **o: UNet(depth=2, filters=8, **o), 6.31972798737479, 0.2255786138290811),
    "hdn": (lambda **o: HDN(GaussianNoise(5.0), **LIGHT, **o), 2454.9697064465677, None),
    "divnoising": (lambda **o: DivNoising(GaussianNoise(5.0), filters=8, **o), 3.086094252061912, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_images_have_the_weights_and_answers_that_they_had(name):
    make, weights, output = NETWORKS[name]
    torch.manual_seed(0)
    network, images = make(), torch.randn(2, 1, 32, 48)
    total = sum(v.double().sum() for v in network.state_dict().values())
    assert float(total) == pytest.approx(weights, rel=1e-9)
    if output is not None:
        with torch.inference_mode():
            assert float(network(images).double().abs().mean()) == pytest.approx(output, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "separable"])
def test_networks_of_volumes_have_the_same_parameters_with_one_more_axis(name):
    make = NETWORKS[name][0]
    images, volumes = (dict(make(dims=dims).named_parameters()) for dims in (2, 3))
    assert images.keys() == volumes.keys()
    for key, value in images.items():
        assert volumes[key].ndim == value.ndim + (value.ndim == 4)


def test_a_block_of_pixels_becomes_channels_as_of_images():
    volumes = torch.randn(2, 3, 4, 6, 8)
    blocks = unshuffled(volumes, 2)
    assert blocks.shape == (2, 24, 2, 3, 4) and torch.equal(shuffled(blocks, 2), volumes)
    assert torch.equal(blocks[0, :8, 1, 2, 3], volumes[0, 0, 2:, 4:, 6:].flatten())
    images = torch.randn(2, 3, 6, 8)
    assert torch.equal(unshuffled(images, 2), F.pixel_unshuffle(images, 2))
    assert torch.equal(as_planes(volumes)[5], volumes[1, :, 1])


@pytest.mark.parametrize("make", [LightUNet, UNet, HDN, DivNoising])
def test_other_numbers_of_axes_are_refused(make):
    with pytest.raises(ValueError, match="got dims=1, allowed are 2 for images and 3 for volumes"):
        make(dims=1)
    if make in (LightUNet, UNet):
        with pytest.raises(ValueError, match="for volumes, must be 1"):
            make(dims=3, scale=2)


@pytest.mark.parametrize("kind", ["hdn", "divnoising"])
def test_samplers_of_volumes_keep_the_rules(kind):
    small = dict(levels=1, latents=2, filters=4, blocks=1, unshuffle=2, free_bits=0.0)
    samplers = {
        "hdn": lambda: HDN(GaussianNoise(std=10.0), dims=3, **small),
        "divnoising": lambda: DivNoising(GaussianNoise(std=10.0), dims=3, filters=4, latents=4, depth=1),
    }
    check_sampler(samplers[kind](), sizes=[(9, 6)])
