import numpy as np
import pytest

from distill.datasets import Specimen, specimen
from distill.datasets.canvas import blur, five_nearest
from distill.errors import UserError


@pytest.fixture(scope="module")
def camera() -> Specimen:
    return specimen(6)


@pytest.fixture(scope="module")
def gaussian() -> Specimen:
    return specimen(3, noise="gaussian")


def input_psnr(s: Specimen) -> np.ndarray:
    clean = s.clean.astype(np.float64)
    mse = ((s.noisy - clean) ** 2).mean(axis=(1, 2))
    return 10 * np.log10(np.ptp(clean, axis=(1, 2)) ** 2 / mse)


def test_shapes_and_types(camera, gaussian):
    assert camera.noisy.shape == camera.clean.shape == (6, 256, 256)
    assert (camera.noisy.dtype, gaussian.noisy.dtype) == (np.uint16, np.float32)
    assert camera.clean.dtype == gaussian.clean.dtype == np.float32
    assert all(np.isfinite(a).all() for s in (camera, gaussian) for a in (s.noisy, s.clean))


def test_the_seed_decides_and_a_longer_set_only_appends(camera):
    shorter, other = specimen(2), specimen(2, seed=1)
    np.testing.assert_array_equal(shorter.noisy, camera.noisy[:2])
    np.testing.assert_array_equal(shorter.clean, camera.clean[:2])
    assert np.corrcoef(other.clean.ravel(), shorter.clean.ravel())[0, 1] < 0.3
    assert np.corrcoef(camera.clean[0].ravel(), camera.clean[1].ravel())[0, 1] < 0.3


def test_both_kinds_of_noise_show_the_same_fields(camera, gaussian):
    for a, b in zip(camera.clean, gaussian.clean, strict=False):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(1, abs=1e-6)


def test_noise_has_the_stated_mean_and_variance(camera):
    clean = camera.clean.astype(np.float64).ravel()
    residual = camera.noisy.ravel() - clean
    order = np.argsort(clean)
    for level in np.array_split(order, 12):  # from the dimmest pixels to the brightest
        variance = camera.gain * clean[level].mean() + camera.offset
        assert residual[level].var() == pytest.approx(variance, rel=0.04)
        assert residual[level].mean() == pytest.approx(0, abs=4 * np.sqrt(variance / len(level)))


def test_the_camera_never_clips(camera):
    assert camera.noisy.min() > 0 and camera.noisy.max() < 2**16 - 1


def test_gaussian_noise(gaussian):
    residual = gaussian.noisy - gaussian.clean
    assert (gaussian.gain, gaussian.offset) == (0, 625)
    assert residual.std() == pytest.approx(25, rel=0.01)
    assert (gaussian.clean.min(axis=(1, 2)) == 0).all()
    assert gaussian.clean.max(axis=(1, 2)) == pytest.approx(255)
    assert input_psnr(gaussian) == pytest.approx(20.17, abs=0.15)


def test_input_psnr_is_that_of_a_dim_recording(camera):
    assert 18 < input_psnr(camera).mean() < 22
    assert input_psnr(specimen(1, photons=120)) > input_psnr(camera)[0] + 3


def test_no_training_patch_is_empty(camera):
    patches = camera.clean.reshape(6, 4, 64, 4, 64).std(axis=(2, 4))
    assert (patches > 0.25 * camera.clean.std(axis=(1, 2))[:, None, None]).all()


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"size": 8}, {"photons": 0}, {"photons": 1e6}, {"sigma": -1}, {"noise": "salt"}],
)
def test_wrong_arguments(wrong):
    with pytest.raises(UserError, match="specimen: got"):
        specimen(**wrong)


def test_lines_run_along_the_rows_and_have_no_mean():
    lines, camera = specimen(2, noise="lines"), specimen(2)
    np.testing.assert_array_equal(lines.clean, camera.clean)
    added = lines.noisy - camera.noisy.astype(np.float32)
    assert added.std() == pytest.approx(8, rel=0.05) and abs(added.mean()) < 0.5
    unit = (added - added.mean()) / added.std()
    assert (unit[:, :, 1:] * unit[:, :, :-1]).mean() == pytest.approx(0.95, abs=0.02)
    assert abs((unit[:, 1:] * unit[:, :-1]).mean()) < 0.05
    assert lines.offset == camera.offset + 64


def test_canvas_is_that_of_scipy():
    ndimage, spatial = pytest.importorskip("scipy.ndimage"), pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(0)
    image = rng.normal(size=(70, 9))
    np.testing.assert_allclose(blur(image, 6), ndimage.gaussian_filter(image, (6, 0)), atol=1e-12)
    position = np.mgrid[:150, :150] + rng.normal(0, 9, (2, 150, 150))
    seeds = rng.uniform(-20, 170, (40, 2))
    squared, near = five_nearest(position, seeds)
    distance, expected = spatial.KDTree(seeds).query(position.reshape(2, -1).T, k=5)
    np.testing.assert_array_equal(near.reshape(5, -1).T, expected)
    np.testing.assert_allclose(np.sqrt(squared).reshape(5, -1).T, distance)
