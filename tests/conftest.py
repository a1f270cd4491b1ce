"""Small networks and images that every test folder uses."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from samplers import HDN, GaussianNoise
from students import UNet

os.environ["HF_HUB_OFFLINE"] = "1"  # tests ask for no download, and one that did would wait for minutes


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    if "DISTILL_TEST_DATA" not in os.environ:
        pytest.skip("DISTILL_TEST_DATA is not set: no real images")
    return Path(os.environ["DISTILL_TEST_DATA"])


@pytest.fixture
def noisy() -> np.ndarray:
    """(4, 48, 40) raw counts of smooth blobs in Gaussian noise of 10 counts."""
    y, x = np.mgrid[:48, :40] / 8
    blobs = 200 + 60 * np.sin(y)[None] * np.cos(x + np.arange(4)[:, None, None])
    return (blobs + np.random.default_rng(0).normal(0, 10, blobs.shape)).astype(np.float32)


@pytest.fixture
def tiny_hdn() -> HDN:
    return HDN(GaussianNoise(10.0), levels=2, latents=2, filters=4, blocks=1, patch_size=16)


@pytest.fixture
def tiny_unet() -> UNet:
    return UNet(depth=2, filters=4)


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory) -> str:
    """A file with random weights of LPIPS's smallest network: its distances mean nothing."""
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("lpips")
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return str(path)
