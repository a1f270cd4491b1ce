"""What a sampler raises on purpose is the user's to read; what breaks is a bug, with its traceback."""

import numpy as np
import pytest
import torch

from distill import UserError
from distill.errors import checks_of, went_through


def test_a_check_is_the_users_to_read():
    with pytest.raises(UserError, match="HDN: pass more"), checks_of("HDN"):
        raise ValueError("pass more")
    with pytest.raises(UserError, match=r"^pass more"), checks_of():
        exec("def check():\n    raise ValueError('pass more')\ncheck()")  # as typed in


@pytest.mark.parametrize(
    "broken",
    [
        lambda: np.zeros(2).reshape(3),
        lambda: dict([(1, 2, 3)]),
        lambda: torch.distributions.Normal(torch.tensor(0.0), torch.tensor(-1.0)),
        lambda: int("x"),
    ],
)
def test_what_breaks_is_a_bug(broken):
    with pytest.raises(ValueError, match=r".") as raised, checks_of("HDN"):
        broken()
    assert not isinstance(raised.value, UserError)


def test_went_through():
    with pytest.raises(ValueError, match="array") as raised:
        np.stack([])
    assert went_through(raised.value, "numpy") and not went_through(raised.value, "tifffile")
