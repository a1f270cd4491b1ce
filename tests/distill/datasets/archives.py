"""Small archives with the true layout of the published ones."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile


def stack(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Frames of one scene in raw counts: a ramp with noise whose variance is linear in it."""
    ramp = np.linspace(300, 3000, shape[-1])
    return np.random.default_rng(seed).normal(ramp, np.sqrt(ramp), shape).astype(np.uint16)


def zipped(record, path: Path, noisy: np.ndarray) -> Path:
    """The record's archive: its TIFFs in a folder, and what a Mac adds."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(record.files):
            file = io.BytesIO()
            tifffile.imwrite(file, noisy if i == 0 else stack(9, (8, 32, 64)), photometric="minisblack")
            archive.writestr(f"{path.stem}/{name}", file.getvalue())
            archive.writestr(f"__MACOSX/{path.stem}/._{name}", b"")
    return path


def tarred(path: Path, fovs=range(1, 21), frames: int = 3, size: int = 32, less: int = 0) -> Path:
    """FMD's layout; frames begin with the numbers of their field of view and of their own, ground truth
    is 100 + field of view. `less`: so many frames fewer in field of view 2."""
    imagecodecs = pytest.importorskip("imagecodecs")
    with tarfile.open(path, "w") as archive:

        def add(name: str, image: np.ndarray) -> None:
            data = imagecodecs.png_encode(image)
            member = tarfile.TarInfo(f"{path.stem}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for fov in fovs:
            for frame in range(frames - less * (fov == 2)):
                image = stack(frame, (size, size)) // 16
                image[0, 0], image[0, 1] = fov, frame
                add(f"raw/{fov}/HV110_P0500510{frame:03}.png", image.clip(0, 255).astype(np.uint8))
                add(f"avg2/{fov}/HV110_P0500510{frame:03}.png", np.zeros((4, 4), np.uint8))
            truth = np.full((size, size), 100 + fov, np.uint8)
            truth[0] = 50
            add(f"gt/{fov}/avg50.png", truth)
    return path
