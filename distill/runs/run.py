"""What a training leaves in memory; on disk, the same is its folder."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from distill.denoiser import DirectDenoiser
from samplers import PosteriorSampler


@dataclass
class Run(os.PathLike[str]):
    """A finished training: its folder, the sampler in eval mode, the student that users keep.

    It goes wherever a folder of a run goes, with the networks that it holds: also those that a
    folder cannot rebuild by name.
    """

    path: Path
    sampler: PosteriorSampler = field(repr=False)
    denoiser: DirectDenoiser = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__
