"""Losses for distillation: each elicits a different functional of the posterior."""

from losses.base import Loss
from losses.energy import EnergyScore
from losses.pointwise import L1, L2, Huber

__all__ = ["L1", "L2", "EnergyScore", "Huber", "Loss"]
