"""Reads the student from a bioimage.io package of `export`, without unpacking it to disk."""

import stat
import zipfile
from pathlib import Path, PurePosixPath

from distill.errors import UserError

STUDENT = "student.safetensors"
MOST_BYTES = 2**31 + 2**24  # limit of ONNX files, which every package has as well, and of a header
MOST_RATIO = 50  # largest ratio of size to compressed size; weights hardly shrink


def is_package(path: Path) -> bool:
    """Whether the path is a .zip file."""
    return path.suffix.lower() == ".zip" and path.is_file()


def student_in(path: Path) -> bytes:
    """The content of its student.safetensors. UserError if it has none, is damaged, or is made to do harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(_member(path, archive.infolist()))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise many exceptions for damaged files
        raise UserError(f"{path}: damaged, or not a package ({error}); download or export it again") from None


def _member(path: Path, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    for entry in entries:
        if _leads_out(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"{path}: has a link, or a path outside of it ({entry.filename[:100]!r}); delete it"
            )
    members = [entry for entry in entries if entry.filename == STUDENT]
    if len(members) != 1:
        raise UserError(
            f"{path}: has {len(members) or 'no'} {STUDENT}; distill opens packages of `distill export "
            "--format bioimageio` only; open others with the program that they were made for"
        )
    if members[0].file_size > min(MOST_BYTES, MOST_RATIO * members[0].compress_size + 2**20):
        raise UserError(
            f"{path}: its {STUDENT} would grow from {members[0].compress_size / 1e6:.3g} MB to "
            f"{members[0].file_size / 1e6:.0f} MB of memory, unlike any student; delete it"
        )
    return members[0]


def _leads_out(name: str) -> bool:
    """Whether a member would be unpacked outside of its folder."""
    return "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts
