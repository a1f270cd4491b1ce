"""Finished runs on disk: the weights, and descriptions from which the networks are rebuilt."""
