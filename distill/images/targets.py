"""Images that are written block by block and appear when they are complete; a stopped one goes on."""

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
SAVE_SECONDS = 5.0  # of work that a kill may cost


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
    """The image that the suffix asks for, of frames (N, channels, Y, X) with the axes, pixel size and names
    of `like`: .tif, .ome.tif or .ome.zarr. Nothing is written yet.

    dtype: "float32", or "input" for that of `like`, rounded and clipped. The others: see ZarrTarget.
    """
    path = Path(path)
    check_dtype(path, dtype)
    if path.name.lower().endswith(".zarr"):
        return ZarrTarget(path, like, channels, dtype, chunks, shards, pyramid)
    if not path.name.lower().endswith(ENDINGS):
        raise UserError(f"{path}: pass a name that ends in .tif, .tiff, .ome.tif or .ome.zarr")
    if chunks or shards or pyramid:
        raise UserError(f"{path}: chunks, shards and pyramid are of Zarr; pass a name that ends in .ome.zarr")
    return TiffTarget(path, like, channels, dtype)


class Writing:
    """Several images of one work, block by block; which blocks are done is on the disk too.

    `plan` is what the blocks follow from. That of a stopped run of the same work is kept, as other blocks may
    differ in the last digit; parts of any other work are replaced.
    """

    def __init__(self, targets: Sequence[Target], work: Any, overwrite: bool) -> None:
        self.targets = targets
        first = targets[0].path
        files = {"files": [target.path.name for target in targets]}
        self._state = Unfinished(first.with_name(f".{first.name}.unfinished.json"), files | {"work": work})
        known = self._state.load() or {}
        self._finishing = bool(known.get("finishing"))
        for target in targets:
            if not (self._finishing and target.path.exists()):  # else it is this work's, or made way for it
                target.check(overwrite)
        there = self._finishing or all(target.is_there() for target in targets)
        self.plan: dict[str, Any] | None = known["plan"] if known and there else None
        self._stored = known.get("blocks", "") if self.plan is not None else ""
        self._saved, self.done = time.monotonic(), np.zeros(0, bool)

    def begin(self, plan: dict[str, Any], blocks: int) -> list[int]:
        """Which blocks of the plan are still to be written."""
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
        """Parts of another work under the same name, which may have had more images."""
        for name in (self._state.other() or {}).get("files", []):
            part = self.targets[0].path.with_name(f".{Path(name).name}.part")
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def write(self, first: int, y0: int, x0: int, images: Sequence[np.ndarray]) -> None:
        """A block (F, C', h, w) of each image."""
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
    """All of them appear when the block ends well. After an error their parts stay, for the same work to go
    on from, unless there is nothing in them."""
    first = targets[0].path
    if not first.parent.is_dir():
        raise UserError(f"{first}: its folder does not exist; create it or pass another path")
    with locked(first.parent, f"predict.{first.name}"):
        written = Writing(targets, work, overwrite)
        try:
            yield written
            written.finish()
        except BaseException:
            if written.done.any():
                written.save()
                log.warning(
                    "%s: %.0f %% are done, kept in %s; the same command goes on from there, one with other "
                    "settings replaces it", first, 100 * written.done.mean(), targets[0].part
                )  # fmt: skip
            elif written.done.size:
                written.discard()
            raise
