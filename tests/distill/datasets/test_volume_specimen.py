import numpy as np
import pytest

from distill import UserError, specimen_volume


def test_the_noise_of_a_volume_has_the_stated_mean_and_variance():
    volume = specimen_volume(16, 64)
    assert volume.noisy.shape == volume.clean.shape == (16, 64, 64) and volume.noisy.dtype == np.uint16
    clean = volume.clean.astype(np.float64).ravel()
    residual = volume.noisy.ravel() - clean
    for level in np.array_split(np.argsort(clean), 4):
        variance = volume.gain * clean[level].mean() + volume.offset
        assert residual[level].mean() == pytest.approx(0, abs=4 * np.sqrt(variance / len(level)))
        assert residual[level].var() == pytest.approx(variance, rel=0.08)


def test_planes_of_a_volume_belong_together_and_the_seed_decides():
    first, again, other = (specimen_volume(8, 32, seed=seed).clean for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] < 0.5
    assert np.corrcoef(first[3].ravel(), first[4].ravel())[0, 1] > 0.7
    with pytest.raises(UserError, match="pass depth >= 8"):
        specimen_volume(4)
