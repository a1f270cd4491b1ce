"""Distil any posterior sampler into a network that answers in one pass."""
