"""Fits noise models to repeats, calibration frames, or the noisy images alone."""
