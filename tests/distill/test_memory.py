"""Memory is asked for before it is taken."""

import pytest

from distill import UserError
from distill.memory import check_memory, free_memory


def put(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_machine_and_the_groups_of_this_process_tell_what_is_free(tmp_path):
    assert free_memory(tmp_path) == float("inf")
    put(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:   4000 kB\n")
    assert free_memory(tmp_path) == 4_096_000
    put(tmp_path, proc__self__cgroup="0::/job/step\n")
    for group, limit in {"": "max", "job/": "3000", "job/step/": "max"}.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("2000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 300\nactive_file 200\n")
    assert free_memory(tmp_path) == 3000 - 2000 + 500  # pages of files can go


def test_groups_of_version_1(tmp_path):
    put(tmp_path, proc__self__cgroup="5:devices:/a\n4:memory:/a\n")
    folder = tmp_path / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("700")
    (folder / "memory.usage_in_bytes").write_text("100")
    assert free_memory(tmp_path) == 600


def test_more_than_there_is_is_one_line():
    with pytest.raises(UserError, match=r"stack: needs 1e\+09 GB of memory, .* GB are free; less"):
        check_memory(1e18, "stack", "less")
