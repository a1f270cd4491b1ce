"""Losses for distillation: each elicits a different functional of the posterior."""

from losses.base import Loss
from losses.pointwise import L1, L2, Huber

__all__ = ["L1", "L2", "Huber", "Loss"]
