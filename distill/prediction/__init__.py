"""Denoised images and draws of whole stacks."""
