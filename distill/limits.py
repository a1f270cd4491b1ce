"""What the arguments of the public functions may be: one table, by their names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from distill.errors import UserError


@dataclass(frozen=True)
class Range:
    """Finite numbers of a kind. The bounds `least` and `most` are allowed, `above` and `below` are not."""

    kind: type = Integral
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, self.kind) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        parts = [f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)]
        return ("a whole number" if self.kind is Integral else "a number") + f" {' and '.join(parts)}"


COUNT, SIZE = Range(least=1), Range(least=0)
RATE, SHARE, PART = Range(Real, least=0), Range(Real, least=0, below=1), Range(Real, above=0, below=1)
LIMITS = {
    **dict.fromkeys(("batch_size", "micro_batch", "patch_size", "validate_every", "patience"), COUNT),
    **dict.fromkeys(
        ("frames", "keep", "repeats", "n_gaussian", "n_coeff", "tile", "chunks", "shards"), COUNT
    ),
    **dict.fromkeys(("steps", "refine_steps", "halo", "draws"), SIZE),
    **dict.fromkeys(("lr", "student_lr"), RATE),
    **dict.fromkeys(("ema", "val_fraction"), SHARE),
    **dict.fromkeys(("held_out", "level"), PART),
    "clip": Range(Real, above=0),
    "self_supervised": Range(Real, least=0, most=1),
    "seed": Range(least=0, below=2**64),
}


def check_limits(arguments: Mapping[str, Any], **others: Range) -> None:
    """A UserError for the first argument that is no number of its range, or an empty text.

    arguments: a function's, by their names; those of other names, and None, are left alone. others: ranges
    that differ from the table's.
    """
    ranges = LIMITS | others
    for name, value in arguments.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str) and (not each.strip() or "\0" in each):
                raise UserError(f"{name}: got {each!r}; pass a text with visible characters, or leave it out")
            if name in ranges and each is not None and each not in ranges[name]:
                raise UserError(f"{name}: got {each!r}, must be {ranges[name]}")
