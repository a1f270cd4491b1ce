"""Files are written whole or not at all, and are readable for those whom the umask allows."""

import os
import subprocess
import sys

import pytest
import torch

from distill import UserError
from distill.files import Unfinished, read_json_lines, whole_file, write_json, write_text
from distill.runs.tensors import save


@pytest.fixture
def umask():
    former = os.umask(0o022)
    yield
    os.umask(former)


def stop_half_way(part):
    part.write_text("half")
    raise KeyboardInterrupt


def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / name) as part:
            stop_half_way(part)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_until_the_block_ends_the_old_file_is_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"µ": 1})
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == '{\n "\\u00b5": 1\n}\n'
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_what_the_disk_refuses_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a.txt: cannot be written \(No such file or directory\)"):
        write_text(tmp_path / "absent" / "a.txt", "")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"b.txt: cannot be written \(No space left\)"):
        write_text(tmp_path / "b.txt", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_umask_gives_the_rights_and_not_the_library(tmp_path, umask):
    save(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_only_the_same_work_goes_on(tmp_path):
    path, work = tmp_path / "state.json", {"draws": 3, "mean": (0.1, float(torch.tensor(0.3)))}
    state = Unfinished(path, work)
    assert state.load() is None and state.other() is None
    state.save([1, 2])
    assert Unfinished(path, work).load() == [1, 2] and Unfinished(path, work).other() is None
    more = Unfinished(path, work | {"draws": 4})
    assert more.load() is None and more.other()["draws"] == 3
    state.delete()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("torn", [b"", b'{"work": 1, "do', b"\xff\x00", b"[]", b"3", b'{"step": 2}'])
def test_a_torn_state_counts_as_nothing_done(tmp_path, torn):
    state = Unfinished(tmp_path / "state.json", 1)
    state.path.write_bytes(torn)
    assert state.load() is None and state.other() is None
    state.save(5)
    assert state.load() == 5
    state.path.write_text(state.path.read_text().replace("5", "6", 1))
    assert state.load() is None


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    others = [".a.txt.notes.part", f".b.txt.{gone.pid}.part", f".a.txt.{os.getppid()}.part"]
    for name in (*others, f".a.txt.{gone.pid}.part"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "a.txt"])


def test_a_line_that_a_crash_has_torn_is_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "los\n[3]\n\xff\x00\n\n{"step": 4}\n{"st')
    assert read_json_lines(tmp_path / "a.jsonl") == [{"step": 1}, {"step": 4}]
