"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from distill.errors import UserError


@contextmanager
def whole_file(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes that name when the block ends well.

    So `path` is at any moment the old file or the new one, also after a crash, and readable for those
    whom the umask allows. Raises UserError if the disk or the rights forbid it, and for a symbolic link.

    sync: wait for the disk, so that a power failure does not tear it either.
    """
    path = Path(path)
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link; pass the name of what it leads to, or another")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _remove_parts_of_the_dead(path)
        part.touch()
        mode = part.stat().st_mode  # what the umask gives: some libraries make files for their owner alone
        yield part
        part.chmod(mode)
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); check space and rights") from error
    finally:
        part.unlink(missing_ok=True)


def _remove_parts_of_the_dead(path: Path) -> None:
    """What a process that was killed while it wrote `path` has left beside it."""
    for name in os.listdir(path.parent):
        pid = name.removeprefix(f".{path.name}.").removesuffix(".part")
        if name == f".{path.name}.{pid}.part" and pid.isdecimal() and not _is_running(int(pid)):
            path.with_name(name).unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # where the same call would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_text(path: str | os.PathLike, text: str, sync: bool = True) -> None:
    with whole_file(path, sync) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a file that grows by a line at a time; a line that a crash has torn is skipped."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


class Unfinished:
    """How much of some work is done, and of which work: in a JSON file, so that a stopped one resumes."""

    def __init__(self, path: str | os.PathLike, work: Any) -> None:
        """work: what tells it from other work, its settings or a fingerprint; in the terms of JSON."""
        self.path, self.work = Path(path), json.loads(json.dumps(work))

    def load(self) -> Any:
        """What `save` was told last, of the same work; else None."""
        stored = self._stored()
        return stored["done"] if stored and stored["work"] == self.work else None

    def other(self) -> Any:
        """The work that the file is of, where that is another one; else None."""
        stored = self._stored()
        return stored["work"] if stored and stored["work"] != self.work else None

    def save(self, done: Any) -> None:
        # Not synced: it may be written every few milliseconds, and torn by a power failure it counts as none.
        text = json.dumps({"work": self.work, "done": done})
        write_text(self.path, json.dumps({"state": text, "crc32": crc32(text.encode())}), sync=False)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def _stored(self) -> dict[str, Any] | None:
        """None for no file, a damaged one, or one of anything else."""
        try:
            file = json.loads(self.path.read_text(encoding="utf-8"))
            intact = file["crc32"] == crc32(file["state"].encode())
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return json.loads(file["state"]) if intact else None
