"""Tests reach this machine alone."""

import socket
import urllib.error
import urllib.request
from contextlib import suppress

import pytest


@pytest.fixture
def forgiven(network):
    """What a test asked for is looked at, and then does not count."""
    yield network.asked_for
    network.asked_for.clear()


def send(message: bytes, address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, address)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: urllib.request.urlopen("https://example.org/weights.pth"),
        lambda: socket.create_connection(("93.184.216.34", 80)),
        lambda: send(b"?", ("93.184.216.34", 53)),
        lambda: socket.gethostbyname("example.org"),
    ],
)
def test_whoever_asks_for_the_network_fails_also_where_the_error_is_swallowed(ask, forgiven):
    with (
        pytest.raises(pytest.fail.Exception, match="reach no network, but this one asked for"),
        suppress(Exception),
    ):
        ask()
    assert forgiven  # what fails a test whose library asked from a thread


def test_sockets_of_this_machine_work():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("127.0.0.1", server.getsockname()[1])).close()


def test_an_unplugged_machine_has_the_usual_error(offline, network):
    with pytest.raises(urllib.error.URLError, match="no internet"):
        urllib.request.urlopen("https://example.org")
    assert not network.asked_for
