"""One process at a time in a folder; one that was killed blocks nobody."""

import subprocess
import sys

import pytest

from distill import UserError
from distill.locks import locked

HOLD = """import sys, time
from distill.locks import locked
with locked(sys.argv[1], "train"):
    print(flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(folder, "train"):
        with (
            pytest.raises(UserError, match="another distill train is running there"),
            locked(folder, "train"),
        ):
            pass
        with locked(folder, "evaluate"):
            pass
    with locked(folder, "train"):
        pass
    assert not [*folder.iterdir()]


def test_a_process_that_was_killed_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    with pytest.raises(UserError, match="is running there"), locked(tmp_path, "train"):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path, "train"):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), locked(tmp_path / "file" / "run", "train"):
        pass
