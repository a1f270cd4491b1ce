"""Writes files completely or not at all, and checks paths before the work."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from distill.errors import UserError

LEAST_BYTES = 2**16  # free space that a disk must have for any file


def check_readable(path: str | os.PathLike, advice: str) -> Path:
    """The path of a file. UserError for anything else, because reading a pipe or a device might never end."""
    path = Path(path)
    wrong = (
        "no such file"
        if not os.path.exists(path)  # Path.exists raises for names that are too long
        else "is a folder"
        if path.is_dir()
        else "is a pipe or a device"
        if not path.is_file()
        else ""
        if os.access(path, os.R_OK)
        else "may not be read"
    )
    if wrong:
        raise UserError(f"{path}: {wrong}; {advice}")
    return path


def check_file(
    path: str | os.PathLike, endings: tuple[str, ...], overwrite: bool = False, size: float = 0
) -> Path:
    """The path. UserError if no file of `size` bytes can be written there. Call it before the work."""
    path = Path(path)
    if not path.name.lower().endswith(endings):
        raise UserError(f"{path}: pass a name that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it or pass another path")
    _refuse_link(path)
    if os.path.exists(path) and not (overwrite and path.is_file()):
        raise UserError(f"{path}: exists already; pass another path, or overwrite for a file")
    _try(path, path.parent, size)
    return path


def check_folder(path: str | os.PathLike, size: float = 0) -> Path:
    """The path of a folder that exists or can be made.

    UserError if it cannot, or if files of `size` bytes in total do not fit there. Call it before the work.
    """
    path = Path(path)
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UserError(f"{there}: is a file; pass a folder")
    _try(path, there, size)
    return path


def _try(path: Path, folder: Path, size: float) -> None:
    """UserError if the path cannot be made in the folder, or if the disk does not have the space."""
    try:
        with suppress(FileNotFoundError):
            os.lstat(_part_of(path))  # a name may be too long
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(path, error) from error
    free = shutil.disk_usage(folder).free
    if free < max(size, LEAST_BYTES):
        raise UserError(
            f"{path}: needs {max(size, LEAST_BYTES) / 1e6:.3g} MB, its disk has {free / 1e6:.3g} MB left; "
            "make room, or pass a path on another disk"
        )


def reserve(path: Path) -> None:
    """Allocates every byte of a sparse file on the disk.

    Otherwise a write to its memory map would end the program when the disk is full.
    """
    try:
        with open(path, "rb+") as file:
            _reserve(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _refused(path, error) from error


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@contextmanager
def whole_file(path: str | os.PathLike, synced: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` if the block ends without an error.

    So `path` is at any moment either the old file or the new one, also after a crash. Its permissions follow
    the umask. Raises UserError if it cannot be written, and for a symbolic link.

    synced: whether to wait until the file is on the disk, so that it is complete even after a power failure.
    """
    path = Path(path)
    _refuse_link(path)
    part = _part_of(path)
    try:
        _remove_parts_of_the_dead(path)
        part.touch()
        mode = part.stat().st_mode  # permissions by the umask: some libraries give the owner alone access
        yield part
        part.chmod(mode)
        if synced:
            sync(part)
        os.replace(part, path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):  # in a folder that cannot be written, nothing has to be deleted
            part.unlink(missing_ok=True)


def move_into_place(part: Path, path: Path) -> None:
    """Renames the complete file `part` to `path`, and waits for the disk. Errors: see `whole_file`."""
    _refuse_link(path)
    try:
        sync(part)
        os.replace(part, path)
    except OSError as error:
        raise _refused(path, error) from error


def sync(path: Path) -> None:
    """Waits until the contents of the file are on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _refuse_link(path: Path) -> None:
    if os.path.islink(path):
        raise UserError(f"{path}: is a symbolic link; pass the name of its target, or another")


def _part_of(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.part"


def _refused(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); check space and rights")


def _remove_parts_of_the_dead(path: Path) -> None:
    """Removes parts that processes left beside `path` when they were killed."""
    for name in os.listdir(path.parent):
        pid = name.removeprefix(f".{path.name}.").removesuffix(".part")
        if name == f".{path.name}.{pid}.part" and pid.isdecimal() and not _is_running(int(pid)):
            path.with_name(name).unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # on Windows the same call would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def write_text(path: str | os.PathLike, text: str, synced: bool = True) -> None:
    with whole_file(path, synced) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line; incomplete lines, after a crash, are skipped."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


class Unfinished:
    """The progress of some work, stored in a JSON file, so that interrupted work resumes."""

    def __init__(self, path: str | os.PathLike, work: Any) -> None:
        """work: settings or a fingerprint that identify the work, in the terms of JSON."""
        self.path, self.work = Path(path), json.loads(json.dumps(work))

    def load(self) -> Any:
        """The last value that `save` stored for the same work; None if there is none."""
        stored = self._stored()
        return stored["done"] if stored and stored["work"] == self.work else None

    def other(self) -> Any:
        """The work in the file if it is another one; otherwise None."""
        stored = self._stored()
        return stored["work"] if stored and stored["work"] != self.work else None

    def save(self, done: Any) -> None:
        # Not synced, because it may be written every few milliseconds; a damaged file counts as none.
        text = json.dumps({"work": self.work, "done": done})
        write_text(self.path, json.dumps({"state": text, "crc32": crc32(text.encode())}), synced=False)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def _stored(self) -> dict[str, Any] | None:
        """The contents of the file; None if it is missing, damaged, or of another kind."""
        try:
            file = json.loads(self.path.read_text(encoding="utf-8"))
            intact = file["crc32"] == crc32(file["state"].encode())
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return json.loads(file["state"]) if intact else None
