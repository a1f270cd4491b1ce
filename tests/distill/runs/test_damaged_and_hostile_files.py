"""The scripts under benchmarks/ on files that disks have damaged, and on files made to harm."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
def test_damage_is_refused_or_harmless(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("damaged_files").run(300)
    assert {result for results in found.values() for result in results} <= {"refused", "whole", "loaded"}
    assert sum(sum(results.values()) for results in found.values()) == 300


@pytest.mark.slow
def test_no_file_runs_code_or_reaches_beyond_its_folder():
    script = [sys.executable, str(BENCHMARKS / "hostile_files.py")]  # apart: an audit hook cannot be removed
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
