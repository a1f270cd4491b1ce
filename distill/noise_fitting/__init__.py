"""Noise models from repeats, calibration frames, or the noisy images alone."""
