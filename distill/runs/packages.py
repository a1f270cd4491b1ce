"""The student in a bioimage.io package that `export` wrote: one member of it, read in memory."""

import stat
import zipfile
from pathlib import Path, PurePosixPath

from distill.errors import UserError

STUDENT = "student.safetensors"
MOST_BYTES = 2**31 + 2**24  # what an ONNX file can hold, which every package has as well, and a header
MOST_RATIO = 50  # of a member's size to its compressed one; weights hardly shrink


def is_package(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def student_in(path: Path) -> bytes:
    """The bytes of its student.safetensors, read in memory. UserError for a package without one, a damaged
    one, and one that is made to harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(_member(path, archive.infolist()))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise nearly every kind for damaged files
        raise UserError(f"{path}: damaged, or no package ({error}); fetch or export it again") from None


def _member(path: Path, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    for entry in entries:
        if _leads_out(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"{path}: holds a link, or a path out of it ({entry.filename[:100]!r}); discard it"
            )
    members = [entry for entry in entries if entry.filename == STUDENT]
    if len(members) != 1:
        raise UserError(
            f"{path}: holds {len(members) or 'no'} {STUDENT}; of packages, distill opens those that "
            "`distill export --format bioimageio` wrote; others need the program that they were made for"
        )
    if members[0].file_size > min(MOST_BYTES, MOST_RATIO * members[0].compress_size + 2**20):
        raise UserError(
            f"{path}: its {STUDENT} would take {members[0].file_size / 1e6:.0f} MB of memory, from "
            f"{members[0].compress_size / 1e6:.3g} MB, as no student does; discard it"
        )
    return members[0]


def _leads_out(name: str) -> bool:
    return "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts
