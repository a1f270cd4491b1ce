"""The result of a training in memory; on disk it is the folder of the run."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from distill.denoiser import DirectDenoiser
from samplers import PosteriorSampler


@dataclass
class Run(os.PathLike[str]):
    """A finished training, with its folder, the sampler in eval mode, and the final student.

    It is accepted everywhere in place of the folder of a run. Its networks are then used as they are, also
    those that cannot be rebuilt by name from the folder.
    """

    path: Path
    sampler: PosteriorSampler = field(repr=False)
    denoiser: DirectDenoiser = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__
