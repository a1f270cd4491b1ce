"""Commands that are killed at random moments and given again leave what an undisturbed one leaves."""

import importlib
import os
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
@pytest.mark.parametrize("command", ["train", "cache", "evaluate", "predict"])
def test_killed_commands_end_as_undisturbed_ones(command, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    kills, _, wrong = importlib.import_module("kills").trials(command, kills=4, inside=0.5)
    assert kills == 4 and not wrong
