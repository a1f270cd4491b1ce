from functools import partial

import numpy as np
import pytest
import tifffile
import torch
from scipy.signal import lfilter

from distill import UserError
from distill.noise_fitting.blind_spot import blind_spot_pairs
from distill.noise_fitting.fit import fit_noise_model
from samplers import (
    AutoregressiveNoise,
    ChannelNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    HistogramNoise,
    load_noise_model,
)

GAIN, READ = 2.0, 25.0
QUICK = {"kind": "gaussian"}


def scene(size: int = 96) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return 150 + 60 * np.sin(y / 14) * np.cos(x / 17) + 40 * (np.hypot(y - 40, x - 50) < 20)


def observe(clean: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noisy = GAIN * rng.poisson(clean / GAIN, (n, *clean.shape))
    return (noisy + rng.normal(0, READ**0.5, noisy.shape)).round().clip(0, 65535).astype(np.uint16)


def variance(model: GaussianNoise, level: float) -> float:
    return float(model.variance(torch.tensor(level)))


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level("INFO", "distill")


@pytest.mark.parametrize("n", [2, 3, 30])
@pytest.mark.parametrize("method", ["repeats", "calibration"])
def test_variance_is_unbiased_however_few_the_frames(tmp_path, n, method):
    model = fit_noise_model(observe(scene(), n), tmp_path / "noise.npz", method=method, **QUICK)
    for level in (110.0, 150.0, 200.0):
        assert abs(variance(model, level) / (GAIN * level + READ) - 1) < 0.1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gmm", GaussianMixtureNoise), ("gaussian", GaussianNoise), ("histogram", HistogramNoise)],
)
def test_every_kind_is_fitted_written_plotted_and_recognised(tmp_path, caplog, monkeypatch, kind, expected):
    quick = partial(GaussianMixtureNoise.fit, steps=150, batch_size=4096)
    monkeypatch.setattr(GaussianMixtureNoise, "fit", quick)
    frames = observe(scene(64), 20)
    model = fit_noise_model(frames, tmp_path / "noise.npz", kind=kind, n_gaussian=1, percentiles=(0, 100))
    assert type(model) is expected
    truth = np.broadcast_to(scene(64), frames.shape).copy()
    s, x = torch.from_numpy(truth).float(), torch.from_numpy(frames.astype("f4"))
    ideal = -GaussianNoise(gain=GAIN, offset=READ).log_likelihood(x, s).mean()
    assert abs(model.held_out_nll - ideal) < (0.08 if kind == "histogram" else 0.03)
    assert f"held-out {model.held_out_nll:.4f} nats/pixel" in caplog.text
    again = load_noise_model(tmp_path / "noise.npz")
    assert type(again) is expected
    assert torch.allclose(model.log_likelihood(x, s), again.log_likelihood(x, s), rtol=1e-5)
    assert (tmp_path / "noise.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noise.npz", "noise.png"]


def test_bootstrap_from_noisy_frames_alone(tmp_path):
    frames = np.stack([observe(np.roll(scene(160), 9 * i, 1), 1, i)[0] for i in range(4)])
    model = fit_noise_model(frames, tmp_path / "noise.npz", method="bootstrap", **QUICK)
    for level in (110.0, 150.0, 200.0):
        assert abs(variance(model, level) / (GAIN * level + READ) - 1) < 0.2


def test_the_blind_spot_is_blind():
    frames = np.random.default_rng(0).normal(100, 10, (2, 1, 128, 128)).astype("f4")
    signal, observation = blind_spot_pairs(frames, np.random.default_rng(0), smooth=1.0)
    assert len(signal) == 2 * 122 * 122  # less a border of 3
    assert abs(np.corrcoef(signal, observation)[0, 1]) < 0.03
    assert np.isclose((observation - signal).std(), 10, rtol=0.03)


@pytest.mark.parametrize("method", ["repeats", "dark", "bootstrap"])
def test_line_noise_is_fitted_as_an_autoregressive_model(tmp_path, caplog, method):
    rng = np.random.default_rng(0)
    lines = lfilter([1.0], [1.0, -0.9], rng.normal(0, 4, (16, 48, 48)), axis=2)
    clean = np.full((48, 48), 100) if method == "dark" else scene(48)
    options = {"signal": clean} if method == "bootstrap" else {}
    model = fit_noise_model(
        (clean + lines).astype("f4"), tmp_path / "noise.npz", kind="autoregressive", context="row",
        method=method, steps=60, **options,
    )  # fmt: skip
    ideal = 0.5 * np.log(2 * np.pi * np.e * 4**2)  # the entropy of an innovation
    assert ideal - 0.02 < model.held_out_nll < ideal + 0.15
    assert "white Gaussian noise: 3.6" in caplog.text
    again = load_noise_model(tmp_path / "noise.npz")
    noise, signal = torch.from_numpy(lines[:, None]).float(), torch.zeros(16, 1, 48, 48)
    assert isinstance(again, AutoregressiveNoise)
    assert torch.allclose(model.log_likelihood(noise, signal), again.log_likelihood(noise, signal))
    assert (tmp_path / "noise.png").read_bytes()[:4] == b"\x89PNG"


def test_signal_given_as_tiff(tmp_path):
    frames = observe(scene(), 4)
    tifffile.imwrite(tmp_path / "noisy.tif", frames, photometric="minisblack")
    tifffile.imwrite(tmp_path / "clean.tif", scene().astype("f4"))
    model = fit_noise_model(
        tmp_path / "noisy.tif", tmp_path / "noise.npz", signal=tmp_path / "clean.tif",
        method="bootstrap", **QUICK,
    )  # fmt: skip
    assert abs(variance(model, 150.0) / (GAIN * 150 + READ) - 1) < 0.1


def test_warnings(tmp_path, caplog):
    frames = observe(scene(), 6)
    fit_noise_model(frames, tmp_path / "a.npz", **QUICK)
    assert "WARNING" not in caplog.text
    fit_noise_model(frames, tmp_path / "b.npz", percentiles=(30, 40), **QUICK)
    assert "is extrapolated" in caplog.text
    caplog.clear()
    fit_noise_model(frames, tmp_path / "c.npz", method="calibration", data=3 * frames, **QUICK)
    assert "is extrapolated" in caplog.text
    moving = np.stack([np.roll(f, 8 * i, 0) for i, f in enumerate(frames)])
    fit_noise_model(moving, tmp_path / "d.npz", **QUICK)
    assert "residuals of neighbours correlate" in caplog.text


def test_same_seed_same_model(tmp_path):
    frames = observe(scene(), 4)
    one, two = (fit_noise_model(frames, tmp_path / f"{i}.npz", seed=3, **QUICK) for i in "ab")
    assert (one.gain, one.held_out_nll) == (two.gain, two.held_out_nll)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "poisson"}, "kind: got 'poisson', allowed"),
        ({"method": "magic"}, "method: got 'magic', allowed"),
        ({"method": "dark"}, "dark frames show the noise at no other signal"),
        ({"kind": "autoregressive", "method": "bootstrap"}, "signal: got none"),
        ({"kind": "autoregressive", "images": np.ones((96, 96))}, "needs 2 frames or more"),
        ({"kind": "autoregressive", "images": observe(scene(24), 5)}, "larger frames"),
        ({"signal": np.ones((96, 96))}, "omit signal, or pass method bootstrap"),
        ({"signal": np.ones((9, 9)), "method": "bootstrap"}, "does not fit images"),
        ({"percentiles": (60, 40)}, "percentiles: got"),
        ({"held_out": 0.0}, "held_out: got 0.0"),
        ({"n_gaussian": 0}, "n_gaussian: got 0"),
        ({"axes": "YXQ"}, "unknown letter"),
        ({"out": "noise.txt"}, "ends in .npz"),
        ({"out": "absent/noise.npz"}, "folder does not exist"),
        ({"out": "taken.npz"}, "taken.npz: exists already"),
        ({"out": "pictured.npz"}, "pictured.png: exists already"),
        ({"images": np.ones((96, 96))}, "needs 2 frames or more"),
        ({"images": np.ones((5, 96, 96))}, "constant signal"),
        ({"images": np.full((5, 96, 96), np.nan)}, "NaN"),
        ({"images": np.ones((5, 8, 8)), "method": "bootstrap"}, "too small"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, message):
    (tmp_path / "taken.npz").touch(), (tmp_path / "pictured.png").touch()
    given = {"images": observe(scene(), 3), "out": "noise.npz"} | arguments
    images, out = given.pop("images"), tmp_path / given.pop("out")
    with pytest.raises(UserError, match=message) as error:
        fit_noise_model(images, out, **given)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictured.png", "taken.npz"]


def test_overwrite_and_bad_files(tmp_path):
    frames, out = observe(scene(), 3), tmp_path / "noise.npz"
    out.write_text("no")
    with pytest.raises(ValueError, match="not a readable"):
        load_noise_model(out)
    fit_noise_model(frames, out, overwrite=True, **QUICK)
    assert isinstance(load_noise_model(out), GaussianNoise)
    np.savez(out, something=1)
    with pytest.raises(ValueError, match="holds something, none of"):
        load_noise_model(out)
    with pytest.raises(ValueError, match="no such file"):
        load_noise_model(tmp_path / "absent.npz")


def test_real_noise_model_files_load(real_data):
    for path in (real_data / "noise_models").glob("*.npz"):
        assert isinstance(load_noise_model(path), GaussianMixtureNoise)


@pytest.mark.parametrize("kind", ["gaussian", "correlated"])
def test_every_channel_is_fitted_by_itself(tmp_path, kind):
    first = observe(scene(64), 12)
    second = (30 * observe(scene(64), 12, seed=1).astype(float)).astype(np.uint16)
    both = np.stack([first, second], axis=1)  # (12, 2, 64, 64)
    for rows, way in ((both, "TCYX"), (np.moveaxis(both, 1, -1), "TYXC")):
        out = tmp_path / way
        out.mkdir()
        model = fit_noise_model(rows, out / "noise.npz", kind=kind, axes=way)
        level = torch.tensor(150.0)
        small, large = (float(m.variance(v)) for m, v in zip(model.models, (level, 30 * level), strict=True))
        assert small == pytest.approx(GAIN * 150 + READ, rel=0.15) and large == pytest.approx(
            900 * small, rel=0.15
        )
        assert {p.name for p in out.iterdir()} == {"noise.npz", "noise_channel0.png", "noise_channel1.png"}
        assert isinstance(load_noise_model(out / "noise.npz"), ChannelNoise) and np.isfinite(
            model.held_out_nll
        )
    with pytest.raises(UserError, match="exists already"):
        fit_noise_model(both, tmp_path / "TCYX" / "noise.npz", kind=kind)
    (tmp_path / "TCYX" / "noise.npz").unlink()
    with pytest.raises(UserError, match=r"noise_channel0\.png: exists already"):
        fit_noise_model(both, tmp_path / "TCYX" / "noise.npz", kind=kind)
    assert not (tmp_path / "TCYX" / "noise.npz").exists()
