"""Writes images block by block; they appear when they are complete, and interrupted ones resume."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files import Unfinished
from distill.images.frames_in import check_dtype
from distill.images.ome_zarr_target import ZarrTarget
from distill.images.stack import Stack
from distill.images.tiff_target import ENDINGS, TiffTarget
from distill.locks import locked

log = logging.getLogger(__name__)
Target = TiffTarget | ZarrTarget
SAVE_SECONDS = 5.0  # most work that is lost if the process is killed


def open_target(
    path: str | Path,
    like: Stack,
    channels: int,
    dtype: str = "float32",
    *,
    chunks: int | None = None,
    shards: int | None = None,
    pyramid: bool = False,
) -> Target:
    """A target in the format of the suffix (.tif, .ome.tif or .ome.zarr). Nothing is written yet.

    Its frames are (N, channels, Y, X), with the axes, pixel size and names of `like`. dtype: "float32", or
    "input" for that of `like`, rounded and clipped. For the other arguments, see ZarrTarget.
    """
    path = Path(path)
    check_dtype(path, dtype)
    if path.name.lower().endswith(".zarr"):
        return ZarrTarget(path, like, channels, dtype, chunks, shards, pyramid)
    if not path.name.lower().endswith(ENDINGS):
        raise UserError(f"{path}: pass a name that ends in .tif, .tiff, .ome.tif or .ome.zarr")
    if chunks or shards or pyramid:
        raise UserError(f"{path}: chunks, shards and pyramid need Zarr; pass a name that ends in .ome.zarr")
    return TiffTarget(path, like, channels, dtype)


class Writing:
    """Several images that are written together, block by block, with a record of the finished blocks on disk.

    The blocks follow from a `plan`. The plan of an interrupted run of the same work is kept, because other
    blocks may differ in the last digit. Parts of other work are replaced.
    """

    def __init__(self, targets: Sequence[Target], work: Any, overwrite: bool) -> None:
        self.targets = targets
        first = targets[0].path
        files = {"files": [target.path.name for target in targets]}
        self._state = Unfinished(first.with_name(f".{first.name}.unfinished.json"), files | {"work": work})
        state = self._state.load() or {}
        self._finishing = bool(state.get("finishing"))
        for target in targets:
            if not (self._finishing and target.path.exists()):  # otherwise it is of this work
                target.check(overwrite)
        there = self._finishing or all(target.is_there() for target in targets)
        self.plan: dict[str, Any] | None = state["plan"] if state and there else None
        self._stored = state.get("blocks", "") if self.plan is not None else ""
        self._saved, self.done = time.monotonic(), np.zeros(0, bool)

    def begin(self, plan: dict[str, Any], blocks: int) -> list[int]:
        """The blocks of the plan that are still to be written."""
        if self.plan is None:
            self._remove_other()
            for target in self.targets:
                target.create()
        self.plan = plan
        packed = np.frombuffer(bytes.fromhex(self._stored), np.uint8)
        self.done = np.zeros(blocks, bool)
        self.done[: 8 * len(packed)] = np.unpackbits(packed)[:blocks]
        self.save()
        return np.flatnonzero(~self.done).tolist()

    def _remove_other(self) -> None:
        """Removes parts of other work under the same name, which may have had more images."""
        for name in (self._state.other() or {}).get("files", []):
            part = self.targets[0].path.with_name(f".{Path(name).name}.part")
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def write(self, first: int, y0: int, x0: int, images: Sequence[np.ndarray]) -> None:
        """Writes a block (F, C', h, w) of each image."""
        for target, image in zip(self.targets, images, strict=True):
            target.write(first, y0, x0, image)

    def mark(self, block: int) -> None:
        """As written."""
        self.done[block] = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        for target in self.targets:
            target.sync()
        blocks = np.packbits(self.done).tobytes().hex()
        self._state.save({"plan": self.plan, "blocks": blocks, "finishing": self._finishing})
        self._saved = time.monotonic()

    def finish(self) -> None:
        self._finishing = True
        self.save()
        for target in self.targets:
            if target.part.exists():
                target.finish()
        self._state.delete()

    def discard(self) -> None:
        self.done = np.zeros(0, bool)
        for target in self.targets:
            target.discard()
        self._state.delete()


@contextmanager
def writing(targets: Sequence[Target], work: Any, overwrite: bool) -> Iterator[Writing]:
    """Makes all images appear when the block ends without an error.

    After an error their parts stay, unless they are empty, and the same work resumes from them.
    """
    first = targets[0].path
    if not first.parent.is_dir():
        raise UserError(f"{first}: its folder does not exist; create it or pass another path")
    with locked(first.parent, f"predict.{first.name}"):
        progress = Writing(targets, work, overwrite)
        try:
            yield progress
            progress.finish()
        except BaseException:
            if progress.done.any():
                progress.save()
                log.warning(
                    "%s: %.0f %% are done, kept in %s; the same command resumes there, one with other "
                    "settings replaces it", first, 100 * progress.done.mean(), targets[0].part
                )  # fmt: skip
            elif progress.done.size:
                progress.discard()
            raise
