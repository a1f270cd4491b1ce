"""Finished runs on disk: weights, and how to build the networks again."""
