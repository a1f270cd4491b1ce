"""Noisy images in, whatever file or array they come from."""
