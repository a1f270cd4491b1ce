"""Commands that are killed at random moments and given again leave what an undisturbed one leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_killed_commands_end_as_undisturbed_ones():
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--inside", "0.5"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
