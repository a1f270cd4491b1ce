import inspect
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import GaussianMixtureNoise, GaussianNoise, neighbour_correlation
from samplers.noise.neighbours import SLIGHT, STRONG
from samplers.noise.tiles import without_hot_pixels

WEIGHT = [
    [-15.0, 20.0], [30.0, -10.0], [2.0, 1.0],
    [3.0, 5.0], [4.0, 6.0], [2.0, 7.0],
    [0.0, 0.5], [-1.0, 0.3], [0.4, -2.0],
]  # fmt: skip
MODELS = [
    GaussianNoise(12.5),
    GaussianNoise(gain=2.0, offset=-40.0, min_variance=4.0),
    GaussianMixtureNoise(WEIGHT, 10, 900, 4.0),
]


@pytest.fixture
def data():
    if "DISTILL_TEST_DATA" not in os.environ:
        pytest.skip("DISTILL_TEST_DATA is not set: no real data to test on")
    return Path(os.environ["DISTILL_TEST_DATA"])


@pytest.mark.parametrize("model", MODELS)
@given(signal=st.floats(-200, 2000))
@settings(max_examples=25, deadline=None)
def test_density_integrates_to_one_and_its_mean_is_the_signal(model, signal):
    s = torch.tensor([signal])
    x = torch.linspace(signal - 1500, signal + 1500, 60_001)
    density = model.log_likelihood(x, s).double().exp() * 0.05
    assert abs(density.sum() - 1) < 1e-3
    mean = (density * (x.double() - s.double())).sum()
    assert abs(mean) < 1e-4 * max(abs(signal), 100)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("distance", [-1e5, 1e5, 50.0])
def test_gradient_is_alive_far_away(model, distance):
    for level in (-50.0, 10.0, 400.0, 5000.0):
        signal = torch.tensor([level], requires_grad=True)
        for noisy, s in ((level + distance, signal), (level, signal + distance)):
            value = model.log_likelihood(torch.tensor([noisy]), s)
            (slope,) = torch.autograd.grad(value.sum(), signal)
            assert value.isfinite().all() and slope.isfinite().all() and slope.abs() > 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_shapes_precision_and_rebuilding(model):
    noisy, signal = torch.rand(2, 1, 4, 5) * 500, torch.rand(3, 2, 1, 4, 5) * 500
    full = model.log_likelihood(noisy, signal)
    assert full.shape == signal.shape and full.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full, model.log_likelihood(noisy, signal))
    assert not list(model.parameters())
    arguments = {name: getattr(model, name) for name in inspect.signature(type(model)).parameters}
    again = type(model)(**json.loads(json.dumps(arguments)))
    assert torch.equal(full, again.log_likelihood(noisy, signal))


@pytest.mark.parametrize("model", MODELS)
def test_samples_follow_the_density(model):
    torch.manual_seed(0)
    signal = torch.full((200_000,), 300.0)
    noisy = model.sample(signal)
    x = torch.linspace(-1200, 1800, 60_001)
    density = model.log_likelihood(x, signal[:1]).double().exp() * 0.05
    std = (density * (x - 300) ** 2).sum().sqrt()
    assert abs(noisy.mean() - 300) < 5 * std / 200_000**0.5
    assert abs(noisy.std() / std - 1) < 0.02
    nll = -model.log_likelihood(noisy, signal).mean()
    entropy = -(density * model.log_likelihood(x, signal[:1])).sum()
    assert abs(nll - entropy) < 0.01


def test_known_gaussian_value():
    value = GaussianNoise(2.0).log_likelihood(torch.tensor(3.0), torch.tensor(1.0))
    assert math.isclose(value, -0.5 - math.log(2) - 0.5 * math.log(2 * math.pi), rel_tol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"std": 0}, {"std": 1, "gain": 1}, {"gain": -1}, {"std": 2, "offset": 1},
     {"gain": 0, "offset": 0}, {"gain": 1, "min_variance": 0}],
)  # fmt: skip
def test_bad_gaussian_arguments(arguments):
    with pytest.raises(ValueError, match="GaussianNoise: got"):
        GaussianNoise(**arguments)


def cells(seed: int, size: int = 384) -> np.ndarray:
    """Textured discs on a background of 20 counts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), 20.0)
    for _ in range(20):
        cy, cx, ry, rx = (*rng.integers(0, size, 2), *rng.uniform(15, 40, 2))
        disc = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        edge = 1 / (1 + np.exp((np.sqrt(disc) - 1) * 10))
        image += edge * rng.uniform(30, 110) * (1 + 0.15 * np.sin(x / 2.5) * np.sin(y / 3))
    return image


def observed(gain: float, offset: float, seed: int) -> np.ndarray:
    rng, clean = np.random.default_rng(seed), cells(seed)
    photons = gain * rng.poisson(clean / gain) if gain else clean
    return photons + rng.normal(0, offset**0.5, clean.shape)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("gain", "offset"), [(2.0, 25.0), (4.0, 100.0), (0.0, 625.0), (1.0, 0.0)])
def test_estimate_on_one_synthetic_image(gain, offset, seed):
    model = GaussianNoise.estimate(observed(gain, offset, seed))
    for level in (20, 60, 120):
        true = gain * level + offset
        assert abs(model.variance(torch.tensor(float(level))) / true - 1) < 0.12
    assert abs(model.gain - gain) < 0.12 * max(gain, 1)


def test_estimate_looks_at_the_whole_of_an_image_that_is_no_multiple_of_a_tile():
    signal = np.full((384, 384), 100.0)
    signal[:, 260:] = np.linspace(100, 1000, 124)  # the part that shows how noise grows with brightness
    noisy = signal + np.random.default_rng(0).normal(size=signal.shape) * np.sqrt(2 * signal + 50)
    assert GaussianNoise.estimate(noisy).gain == pytest.approx(2, rel=0.1)


def spots_on_black(seed: int) -> np.ndarray:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng, spots = np.random.default_rng(seed), np.zeros((256, 256))
    spots[tuple(rng.integers(0, 256, (2, 60)))] = rng.uniform(0.3, 1, 60)
    image = ndimage.gaussian_filter(spots, 6, mode="wrap")
    return image / image.max()


@pytest.mark.parametrize("seed", [0, 2])
def test_background_that_was_subtracted_and_clipped_at_zero(seed):
    rng = np.random.default_rng(seed)
    counts = 5 * rng.poisson(100 * spots_on_black(seed)) + rng.normal(0, 15, (256, 256))
    line = GaussianNoise.estimate(np.maximum(counts.round(), 0))
    assert line.gain == pytest.approx(5, rel=0.1) and line.offset == pytest.approx(15**2, rel=0.2)


@pytest.mark.parametrize("peak", [8, 20])
def test_dark_pixels_without_a_photon_are_not_taken_for_clipped_ones(peak):
    cells = peak * spots_on_black(0) + 0.05
    line = GaussianNoise.estimate(5.0 * np.random.default_rng(0).poisson(cells))
    assert line.gain == pytest.approx(5, rel=0.1) and abs(line.offset) < 0.05 * 5**2


def test_estimate_on_clipped_8_bit_stack():
    stack = np.stack([observed(3.0, 50.0, seed) for seed in range(4)]) - 20
    clipped = stack.round().clip(0, 150).astype(np.uint8)
    model = GaussianNoise.estimate(clipped)  # black level -20: variance = 3 * s + 50 + 60
    assert abs(model.gain / 3 - 1) < 0.12
    assert abs(model.variance(torch.tensor(80.0)) / 350 - 1) < 0.1
    assert model.estimate(torch.from_numpy(clipped)[:, None]).gain == model.gain


@pytest.mark.parametrize(
    "frames",
    [np.zeros((64, 64)), np.full((64, 64), np.nan), np.random.rand(64), np.random.rand(8, 8)],
)
def test_estimate_refuses(frames):
    with pytest.raises(ValueError, match=r"GaussianNoise\.estimate: "):
        GaussianNoise.estimate(frames)


def noisy_waves(correlation: float, seed: int) -> np.ndarray:
    """Four images of noise of variance 2 s + 30, neighbours along x correlated by this."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:384, :384]
    clean = 75 + 55 * np.sin(y / 40) * np.sin(x / 30)
    white = rng.normal(size=(4, 384, 385))
    share = correlation and (1 - (1 - 4 * correlation**2) ** 0.5) / (2 * correlation)
    return (
        clean + (2 * clean + 30) ** 0.5 * (white[..., 1:] + share * white[..., :-1]) / (1 + share**2) ** 0.5
    )


@pytest.mark.parametrize("along", ["x", "y"])
@pytest.mark.parametrize("correlation", [0.0, 0.05, 0.1, -0.05])
def test_slightly_correlated_noise_is_estimated_without_bias(correlation, along):
    levels, ratios = torch.tensor([20.0, 60.0, 120.0]), []
    for seed in range(4):
        frames = noisy_waves(correlation, seed)
        frames = frames.swapaxes(1, 2) if along == "y" else frames
        found = neighbour_correlation(frames)
        assert abs(found[along == "x"] - correlation) < 0.02 and abs(found[along != "x"]) < 0.02
        ratios.append(GaussianNoise.estimate(frames).variance(levels) / (2 * levels + 30))
    assert (torch.stack(ratios).mean(0) - 1).abs().max() < 0.03
    assert (torch.stack(ratios)[:, 1:] - 1).abs().max() < 0.03  # the darkest pixels are few


def test_strongly_correlated_noise_is_told_from_texture():
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = np.random.default_rng(0).normal(0, 10, (3, 384, 384))
    frames = np.stack([cells(i) for i in range(3)]) + ndimage.gaussian_filter(noise, (0, 0.8, 0.8))
    assert min(neighbour_correlation(frames)) > STRONG
    texture = ndimage.gaussian_filter(noise, (0, 1, 1)) * np.linspace(0, 3, 384)
    assert (
        max(neighbour_correlation(texture + np.random.default_rng(1).normal(100, 2, noise.shape))) <= STRONG
    )


def test_neighbours_of_a_small_image_are_not_judged():
    assert neighbour_correlation(np.random.default_rng(0).normal(size=(60, 60))) == (0.0, 0.0)
    with pytest.raises(ValueError, match="neighbour_correlation: got frames"):
        neighbour_correlation(np.zeros((9, 9)))


@pytest.mark.parametrize("field", ["fov1", "fov19"])
def test_estimate_on_real_frames(data, field):
    tifffile = pytest.importorskip("tifffile")
    frames = tifffile.imread(data / f"confocal_bpae_{field}_noisy.tif")
    stack = frames.astype(np.float32)
    mean, variance = stack.mean(0), (np.diff(stack, axis=0) ** 2).mean(0) / 2  # the field drifts
    for taken, tolerance in ((frames, 0.03), (frames[::13], 0.03), (frames[0], 0.05), (frames[25], 0.05)):
        model = GaussianNoise.estimate(taken)
        for low, high in ((5, 7), (7, 12), (25, 50), (50, 150)):
            inside = (mean > low) & (mean < high)
            predicted = model.variance(torch.tensor(float(mean[inside].mean())))
            assert abs(predicted / variance[inside].mean() - 1) < tolerance


def test_real_noise_of_neighbours(data):
    tifffile = pytest.importorskip("tifffile")
    for colour in "gr":
        frames = tifffile.imread(data / f"widefield_bpae_{colour}_noisy.tif")
        assert min(neighbour_correlation(frames)) > STRONG
    for field in ("fov1", "fov19"):
        frame = tifffile.imread(data / f"confocal_bpae_{field}_noisy.tif", key=0)
        assert max(neighbour_correlation(frame)) < SLIGHT


@pytest.mark.parametrize("name", ["gmm_1gaussian_2coeff", "gmm_3gaussian_3coeff"])
def test_real_files_round_trip(data, tmp_path, name):
    path = data / "noise_models" / f"{name}.npz"
    model = GaussianMixtureNoise.read(path)
    model.write(tmp_path / "copy.npz")
    with np.load(path) as old, np.load(tmp_path / "copy.npz") as new:
        assert sorted(old) == sorted(new)
        for key in old:
            np.testing.assert_array_equal(old[key].astype("f4"), new[key].astype("f4"))
    again = GaussianMixtureNoise.read(tmp_path / "copy.npz")
    x, s = torch.rand(50) * 300, torch.rand(50) * 300
    assert torch.equal(model.log_likelihood(x, s), again.log_likelihood(x, s))


def test_min_sigma_bounds_the_variance():
    model = GaussianMixtureNoise([[0.0], [-20.0], [0.0]], 0, 1, 50.0)
    expected = GaussianNoise(50**0.5).log_likelihood(torch.tensor(3.0), torch.tensor(0.5))
    assert torch.isclose(model.log_likelihood(torch.tensor(3.0), torch.tensor(0.5)), expected)


def test_bad_files_and_arguments(tmp_path):
    np.savez(tmp_path / "keys.npz", trained_weight=np.zeros((3, 2)))
    np.savez(
        tmp_path / "shape.npz",
        trained_weight=np.zeros((4, 2)), min_signal=0, max_signal=1, min_sigma=1,
    )  # fmt: skip
    np.savez(
        tmp_path / "pickled.npz",
        trained_weight=np.array([{}], object), min_signal=0, max_signal=1, min_sigma=1,
    )  # fmt: skip
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no")
    for name in ("keys.npz", "shape.npz", "pickled.npz", "plain.npy", "text.npz", "absent.npz"):
        with pytest.raises(ValueError, match=name):
            GaussianMixtureNoise.read(tmp_path / name)
    with pytest.raises(ValueError, match="min_signal < max_signal"):
        GaussianMixtureNoise(WEIGHT, 5, 5, 1)


def test_fit_recovers_poisson_gaussian_noise_and_is_reproducible():
    rng = np.random.default_rng(0)
    signal = rng.uniform(50, 500, (128, 128))
    frames = 2 * rng.poisson(signal / 2, (10, 128, 128)) + rng.normal(0, 5, (10, 128, 128))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fits = [GaussianMixtureNoise.fit(signal, frames, steps=200, batch_size=4096) for _ in "ab"]
    assert fits[0].weight == fits[1].weight and torch.equal(before, torch.get_rng_state())
    s = torch.from_numpy(signal).float().expand(10, 128, 128)
    x = torch.from_numpy(frames).float()
    ideal = -GaussianNoise(gain=2, offset=25).log_likelihood(x, s).mean()
    assert -fits[0].log_likelihood(x, s).mean() < ideal + 0.005
    for level in (75.0, 250.0, 450.0):
        noisy = fits[0].sample(torch.full((100_000,), level))
        assert abs(noisy.var() / (2 * level + 25) - 1) < 0.08


def test_fit_learns_skewed_noise_better_than_a_gaussian():
    rng = np.random.default_rng(1)
    signal = rng.uniform(100, 200, 200_000)
    noisy = signal + rng.gamma(2, 15, signal.shape) - 30
    one, three = (GaussianMixtureNoise.fit(signal, noisy, g, steps=200, batch_size=4096) for g in (1, 3))
    x, s = torch.from_numpy(noisy), torch.from_numpy(signal)
    gain = (three.log_likelihood(x, s) - one.log_likelihood(x, s)).mean()
    assert gain > 0.08  # the exact density gains 0.11 nats


@pytest.mark.parametrize(
    ("signal", "observation"),
    [
        (np.ones(500), np.random.rand(500)),
        (np.random.rand(5), np.random.rand(5)),
        (np.random.rand(400), np.random.rand(500)),
        (np.full(500, np.nan), np.random.rand(500)),
    ],
)
def test_fit_refuses(signal, observation):
    with pytest.raises(ValueError, match=r"GaussianMixtureNoise\.fit: "):
        GaussianMixtureNoise.fit(signal, observation)


def test_a_hot_pixel_goes_but_a_bead_and_single_photons_stay():
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    bead = 100 + 3e4 * torch.exp(-(x**2 + y**2) / 1.5)
    photons = 60.0 * (torch.rand(64, 64) < 0.01)
    lone = 60.0 * ((x == 3) & (y == 5))
    for image in (bead, photons, lone):
        assert without_hot_pixels(image[None, None])[0, 0].equal(image)
    hot = 100 + 10 * torch.rand(64, 64)
    hot[5, 9] = hot[0, 0] = 65535
    cleaned = without_hot_pixels(hot[None, None])[0, 0]
    assert cleaned.max() <= 110 and (cleaned != hot).sum() == 2
