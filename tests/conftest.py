"""Small networks and images that every test folder uses."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from samplers import HDN, GaussianNoise
from students import UNet

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: its client would try for a minute to reach the internet
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # tests run beside each other: one core for each, and for its children
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# The Macs of GitHub Actions report a GPU, but every allocation there fails (actions/runner-images#9918).
if "CI" in os.environ:
    torch.backends.mps.is_available = cache(lambda: False)  # torch's compiler asks for what the cache wraps

# The same examples on every run; `--hypothesis-profile=search` looks for new ones.
_ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("repeatable", _ANY, max_examples=100, derandomize=True)
settings.register_profile("search", _ANY, max_examples=2000)
settings.load_profile("repeatable")


class Network:
    """Lets Python's sockets reach this machine alone, by an audit hook, which no library goes around.

    What asks for more fails the test, also where a library takes the error for a missing connection or
    asks from a thread of its own. An `unplugged` network gives the error of a machine without internet.
    """

    LOCAL = ("localhost", "::1", "127.", "0.0.0.0")
    NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    ADDRESSES = ("socket.connect", "socket.sendto", "socket.sendmsg")

    def __init__(self) -> None:
        self.active, self.unplugged = True, False
        self.asked_for: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active or not event.startswith("socket."):
            return
        if event in self.NAMES:
            self._check(args[0])
        elif event in self.ADDRESSES and isinstance(args[1], tuple):  # a str is a socket of this machine
            self._check(args[1][0])

    def _check(self, host: str | bytes | None) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if not name or name.startswith(self.LOCAL):
            return
        if self.unplugged:
            raise OSError("no internet")
        self.asked_for.append(name)
        pytest.fail(self.message())

    def message(self) -> str:
        return f"tests reach no network, but this one asked for {', '.join(self.asked_for)}"


@pytest.fixture(scope="session", autouse=True)
def network() -> Iterator[Network]:
    network = Network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")  # a proxy on this machine would lead out of it
        yield network
    network.active = False


@pytest.fixture(autouse=True)
def _no_network(network: Network) -> Iterator[None]:
    network.asked_for.clear()
    yield
    if network.asked_for:
        pytest.fail(network.message())


@pytest.fixture
def offline(network: Network) -> Iterator[None]:
    """A machine without internet, for a test of what is said then."""
    network.unplugged = True
    yield
    network.unplugged = False


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
