"""Downloads archives of data sets once, checks them, and unpacks them completely or not at all."""

import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from distill.datasets.records import Record
from distill.errors import UserError
from distill.files import whole_file, write_text


def fetch(record: Record, root: str | os.PathLike | None = None) -> list[Path]:
    """Returns the paths of `record.files`, and downloads and unpacks their archive if they are missing.

    Publishers give no checksum, so the SHA-256 of an archive is stored beside it after the first download,
    and later uses are checked against it. Raises UserError if it changed, or if the download fails.

    Args:
        record: description of the data set.
        root: folder with the archive, or with the folder unpacked from it, or that folder itself. Default:
            the folder in the environment variable DISTILL_DATA, or the user's cache folder.
    """
    root = _root(root)
    folder = root if root.name == Path(record.archive).stem else root / Path(record.archive).stem
    archive = root / record.archive
    missing = _missing(folder, record)
    if not missing:
        if archive.exists():
            _verify(archive)
    elif folder.exists():
        raise UserError(
            f"{folder}: lacks {missing}; complete it, or remove it so that {record.archive} is unpacked again"
        )
    else:
        if not archive.exists():
            _download(record, archive)
        _check_kind(archive, record)
        _verify(archive)
        _unpack(record, archive, folder)
    return [path for name in record.files if (path := _find(folder, name))]


def _root(root: str | os.PathLike | None) -> Path:
    root = root or os.environ.get("DISTILL_DATA") or _pooch().os_cache("posterior-distill")
    return Path(root).resolve()


def _pooch():
    try:
        import pooch
    except ImportError as error:
        raise UserError(
            "pooch: not installed, and needed to download data; pip install 'posterior-distill[data]', or "
            "pass the folder of data that is there already"
        ) from error
    pooch.get_logger().setLevel("WARNING")  # otherwise it suggests to put the checksum into the code
    return pooch


def _find(folder: Path, name: str) -> Path | None:
    """Path of a file or folder of that name within `folder`, the one that is least deep."""
    return min(folder.rglob(name), key=lambda path: len(path.parts), default=None)


def _missing(folder: Path, record: Record) -> str:
    return " and ".join(name for name in record.files if _find(folder, name) is None)


def _download(record: Record, archive: Path) -> None:
    """Downloads an archive.

    A .part file is renamed once it is a complete archive, so that a partial download is never mistaken for
    the data.
    """
    pooch = _pooch()
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**20)
    with _else_by_hand(record, archive):
        archive.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(archive) as part:
        part.unlink()  # pooch would take an existing file for the download
        with _else_by_hand(record, archive):
            # The downloaders of pooch do not match its own type for them.
            pooch.retrieve(record.url, None, part.name, part.parent, downloader=downloader)  # pyright: ignore[reportArgumentType]
        _check_kind(part, record)


@contextmanager
def _else_by_hand(record: Record, archive: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # network errors are OSErrors, too
        raise UserError(
            f"{record.archive}: cannot be downloaded from {record.url} ({_reason(error)}); "
            f"{_by_hand(record, archive.parent)}"
        ) from error


def _by_hand(record: Record, root: Path) -> str:
    return (
        f"fetch it by hand from {record.page} and put it, or its folder {Path(record.archive).stem}, "
        f"into {root}"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_kind(path: Path, record: Record) -> None:
    """UserError if the download is not an archive.

    If Google Drive refuses a big file, it answers with a web page, and without an error.
    """

    is_archive = zipfile.is_zipfile if record.archive.endswith(".zip") else tarfile.is_tarfile
    if is_archive(path):
        return
    with open(path, "rb") as file:
        head = file.read(1024).lower()
    what = "no zip or tar archive, or a part of one"
    if b"<html" in head or b"<!doctype html" in head:
        what = "a web page instead of the archive (Google Drive asks people to confirm a big file)"
    raise UserError(f"{path}: {what}; {_by_hand(record, path.parent)}")


def _checksum_file(archive: Path) -> Path:
    return archive.with_name(archive.name + ".sha256")  # in the format of `sha256sum --check`


def _sha256(archive: Path) -> str:
    with open(archive, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(archive: Path) -> None:
    stored = _checksum_file(archive)
    if stored.exists() and (checksum := _sha256(archive)) != (expected := stored.read_text().split()[0]):
        raise UserError(
            f"{archive}: its SHA-256 is {checksum}, but was {expected} when it first came: damaged or "
            f"replaced; remove it to fetch it again, or {stored.name} and the folder {archive.stem} if that "
            "was on purpose"
        )


def _unpack(record: Record, archive: Path, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _extract(archive, part, record.files)
        if missing := _missing(part, record):
            raise UserError(f"{archive}: lacks {missing}; {_by_hand(record, archive.parent)}")
        stored = _checksum_file(archive)
        if not stored.exists():
            write_text(stored, f"{_sha256(archive)}  {archive.name}\n")
        inner = part / folder.name  # most archives contain a single folder of that name
        os.replace(inner if inner.is_dir() else part, folder)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({_reason(error)}); check space and rights, and remove it to "
            "fetch it again if it is damaged"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(archive: Path, out: Path, names: Collection[str]) -> None:
    """Extracts only the files that are needed; FMD's archives contain five times as much."""

    def needed(member: str) -> bool:
        return not set(names).isdisjoint(PurePosixPath(member).parts)

    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            file.extractall(out, filter(needed, file.namelist()))
    else:
        with tarfile.open(archive) as file:
            # The filter refuses members that would be outside of `out`.
            file.extractall(out, [member for member in file if needed(member.name)], filter="data")
            file.fileobj.seek(file.offset)  # the end of reading, which may be too early without an error
            if file.fileobj.read(512) != bytes(512):
                raise tarfile.ReadError("it ends early")
