"""Evaluates students against ground truth, against draws, and without either."""
