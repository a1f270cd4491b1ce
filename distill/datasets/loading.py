"""The data sets of the paper as arrays, for training and testing, and their noise models."""

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
    """One of the data sets of the paper in raw counts, memory-mapped if its TIFF file is uncompressed."""

    name: str
    record: Record
    noisy: np.ndarray  # (N, Y, X), training images without ground truth
    test_noisy: np.ndarray  # (n, y, x)
    test_clean: np.ndarray  # (y, x) float32, ground truth of all test frames
    calibration: np.ndarray  # (scenes, M, Y, X): repeated frames of static scenes, see `noise_model`

    def noise_model(self) -> Fitted:
        """The noise model, fitted as published: the signal of a scene's frames is their mean."""
        signal = self.calibration.mean(axis=1, keepdims=True)
        return self.record.fit_noise(signal, self.calibration)

    @property
    def psnr_offset(self) -> float:
        """dB to add to the PSNRs of `evaluate`, whose range is max - min, for the paper's range."""
        if self.record.psnr_range is None:
            return 0.0
        return float(20 * np.log10(self.record.psnr_range / np.ptp(self.test_clean)))


def load(name: str, root: str | os.PathLike | None = None) -> DataSet:
    """Loads a data set by its name, and downloads it on first use.

    Raises UserError for an unknown name, for files that are missing and cannot be downloaded, and for damaged
    files.

    Args:
        name: name in RECORDS, such as "convallaria".
        root: folder with the data, or for the download; see `download.fetch`.
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
    pixels = read(path).pixels  # (N, Y, X), whatever the first axis is called
    pixels = pixels if isinstance(pixels, np.ndarray) else np.asarray(pixels)  # maps stay maps
    return pixels.reshape(-1, *pixels.shape[-2:])


def _fields_of_view(record: Record, test_fov: int, noisy: Path, clean: Path) -> tuple[np.ndarray, ...]:
    folders = {int(path.name): path for path in noisy.iterdir() if path.name.isdigit()}
    if lacking := set(range(1, 21)) - folders.keys():
        raise UserError(
            f"{noisy}: lacks the fields of view {', '.join(map(str, sorted(lacking)))}; remove "
            f"{noisy.parent} and, if it is incomplete, {record.archive}"
        )
    scenes = {fov: _pngs(folders[fov]) for fov in sorted(folders)}
    shapes = {fov: frames.shape for fov, frames in scenes.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(
            f"{noisy}: fields of view of different shapes {shapes}; remove {noisy.parent} so that "
            f"{record.archive} is unpacked again"
        )
    test = scenes.pop(test_fov)
    calibration = np.stack([*scenes.values()])  # (19, 50, 512, 512)
    truth = _pngs(clean / str(test_fov))[0].astype("f4")  # one file, the mean of 50 frames
    return calibration.reshape(-1, *calibration.shape[2:]), test, truth, calibration


def _pngs(folder: Path) -> np.ndarray:
    """All PNG files of a folder as one array (N, Y, X), in the order of their names."""
    import imagecodecs

    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise UserError(
            f"{folder}: no PNG files, or no such folder; remove {folder.parents[1]} to unpack again"
        )
    try:
        images = [imagecodecs.png_decode(path.read_bytes()) for path in paths]
    except imagecodecs.PngError as error:
        raise UserError(f"{folder}: contains a damaged PNG ({error}); unpack the archive again") from error
    if len(shapes := {image.shape for image in images}) > 1 or images[0].ndim != 2:
        raise UserError(f"{folder}: PNGs of shape {shapes}; pass grey images (Y, X) of one size")
    return np.stack(images)
