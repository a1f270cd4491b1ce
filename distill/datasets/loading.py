"""The paper's data sets as arrays: what to train on, what to test on, and the noise model."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.datasets.download import fetch
from distill.datasets.records import RECORDS, Fitted, Record
from distill.errors import UserError
from distill.images.tiff import read


@dataclass(frozen=True, eq=False)
class DataSet:
    """One of the paper's data sets in raw counts; memory-mapped where its TIFF is uncompressed."""

    name: str
    record: Record
    noisy: np.ndarray  # (N, Y, X) to train on, without ground truth
    test_noisy: np.ndarray  # (n, y, x)
    test_clean: np.ndarray  # (y, x) float32, of all test frames
    calibration: np.ndarray  # (scenes, M, Y, X): repeated frames of static scenes, see `noise_model`

    def noise_model(self) -> Fitted:
        """Fitted as published: the mean of every scene's frames is the signal of each of them."""
        signal = self.calibration.mean(axis=1, keepdims=True)
        return self.record.fit_noise(signal, self.calibration)

    @property
    def psnr_offset(self) -> float:
        """dB to add to the PSNRs of `evaluate`, whose range is max - min, to have the paper's range."""
        if self.record.psnr_range is None:
            return 0.0
        return float(20 * np.log10(self.record.psnr_range / np.ptp(self.test_clean)))


def load(name: str, root: str | os.PathLike | None = None) -> DataSet:
    """A data set by its name, such as "convallaria" (all are in RECORDS); downloaded on first use.

    root: the folder that holds it or that it is downloaded to; see `download.fetch`.
    Raises UserError for an unknown name, for files that are missing and cannot be fetched, or damaged ones.
    """
    if name not in RECORDS:
        raise UserError(f"data set: got {name!r}, allowed are {', '.join(RECORDS)}")
    record = RECORDS[name]
    paths = fetch(record, root)
    if record.test_fov is None:
        return DataSet(name, record, *_stacks(record, *paths))
    return DataSet(name, record, *_fields_of_view(record, record.test_fov, *paths))


def _stacks(record: Record, noisy: Path, calibration: Path | None = None) -> tuple[np.ndarray, ...]:
    frames = _stack(noisy)
    test = frames[:, *record.test_region]
    clean = test.mean(axis=0, dtype="f8").astype("f4")
    return frames, test, clean, (frames if calibration is None else _stack(calibration))[None]


def _stack(path: Path) -> np.ndarray:
    pixels = read(path).pixels  # (N, Y, X), whatever letter its metadata give the first axis
    pixels = pixels if isinstance(pixels, np.ndarray) else np.asarray(pixels)  # a memory map stays one
    return pixels.reshape(-1, *pixels.shape[-2:])


def _fields_of_view(record: Record, test_fov: int, noisy: Path, clean: Path) -> tuple[np.ndarray, ...]:
    folders = {int(path.name): path for path in noisy.iterdir() if path.name.isdigit()}
    if lacking := set(range(1, 21)) - folders.keys():
        raise UserError(
            f"{noisy}: lacks the fields of view {', '.join(map(str, sorted(lacking)))}; remove "
            f"{noisy.parent} and, if it is not whole, {record.archive}"
        )
    scenes = {fov: _pngs(folders[fov]) for fov in sorted(folders)}
    shapes = {fov: frames.shape for fov, frames in scenes.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(
            f"{noisy}: fields of view of different shapes {shapes}; remove {noisy.parent} to have "
            f"{record.archive} unpacked again"
        )
    test = scenes.pop(test_fov)
    calibration = np.stack([*scenes.values()])  # (19, 50, 512, 512)
    truth = _pngs(clean / str(test_fov))[0].astype("f4")  # one file, their mean of 50 frames
    return calibration.reshape(-1, *calibration.shape[2:]), test, truth, calibration


def _pngs(folder: Path) -> np.ndarray:
    """(N, Y, X) of all PNGs in a folder, in the order of their names."""
    import imagecodecs

    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise UserError(
            f"{folder}: no PNG files, or no such folder; remove {folder.parents[1]} to unpack again"
        )
    try:
        images = [imagecodecs.png_decode(path.read_bytes()) for path in paths]
    except imagecodecs.PngError as error:
        raise UserError(f"{folder}: holds a damaged PNG ({error}); unpack the archive again") from error
    if len(shapes := {image.shape for image in images}) > 1 or images[0].ndim != 2:
        raise UserError(f"{folder}: PNGs of shape {shapes}; pass grey images (Y, X) of one size")
    return np.stack(images)
