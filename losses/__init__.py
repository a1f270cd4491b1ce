"""Losses for distillation, each of which elicits another functional of the posterior."""

from losses.base import Loss
from losses.energy import EnergyScore
from losses.joint_mode import JointMode
from losses.perceptual import LPIPS, Features
from losses.pointwise import L1, L2, Huber
from losses.tukey import Tukey
from losses.uncertainty import MeanVariance, Quantiles
from losses.weighted import WeightedSum

__all__ = [
    "L1",
    "L2",
    "LPIPS",
    "EnergyScore",
    "Features",
    "Huber",
    "JointMode",
    "Loss",
    "MeanVariance",
    "Quantiles",
    "Tukey",
    "WeightedSum",
]
