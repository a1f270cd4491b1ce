"""Channels whose noise differs: each has its own noise model."""

import numpy as np
import pytest
import torch

from distill.evaluation.residuals import residual_scores
from distill.plots.residuals import residual_curves, residual_picture
from distill.runs.rebuild import describe, rebuild
from samplers import (
    HDN,
    AutoregressiveNoise,
    ChannelNoise,
    CorrelatedNoise,
    DivNoising,
    GaussianMixtureNoise,
    GaussianNoise,
    HistogramNoise,
    PhotonNoise,
    StabilizedSampler,
    load_noise_model,
)

TINY = dict(levels=1, latents=2, filters=4, blocks=1)
MODELS = {
    "gaussian": GaussianNoise(gain=2.0, offset=4.0),
    "photons": PhotonNoise(2.0, 4.0, 3.0),
    "gmm": GaussianMixtureNoise([[0.0, 0.0], [3.0, 5.0], [0.0, 0.0]], 10, 900, 4.0),
    "histogram": HistogramNoise(np.eye(20) + 0.1, 0, 400),
    "correlated": CorrelatedNoise([[0.5, 1.0, 0.5]], offset=9.0),
    "autoregressive": AutoregressiveNoise("row", filters=4, dilations=(1,), components=2),
}


def two_cameras(size: int = 96) -> torch.Tensor:
    """(3, 2, size, size): gain 1 and offset 100 beside gain 30 and offset 500, 40 photons and less."""
    y, x = np.mgrid[:size, :size] / 15
    photons = 25 + 15 * np.sin(y) * np.cos(x + np.arange(3)[:, None, None])
    rng = np.random.default_rng(0)
    channels = [level + gain * rng.poisson(photons) for gain, level in ((1, 100), (30, 500))]
    return torch.from_numpy(np.stack(channels, axis=1).astype(np.float32))


def prepared(sampler, noisy):
    std, mean = torch.std_mean(noisy, dim=(0, 2, 3))
    sampler.prepare(noisy, mean.view(-1, 1, 1), std.view(-1, 1, 1))
    return sampler


@pytest.mark.parametrize("kind", MODELS)
def test_every_channel_has_its_own_density_file_and_description(kind, tmp_path):
    first, second = MODELS[kind], GaussianNoise(50.0)
    noise = ChannelNoise([first, second])
    signal = 100 + 50 * torch.rand(2, 2, 16, 16)
    noisy = signal + 5 * torch.randn(2, 2, 16, 16)
    density = noise.log_likelihood(noisy, signal)
    torch.testing.assert_close(density[:, :1], first.log_likelihood(noisy[:, :1], signal[:, :1]))
    torch.testing.assert_close(density[:, 1:], second.log_likelihood(noisy[:, 1:], signal[:, 1:]))
    assert (noise.sample(signal) - signal)[:, 1].std() == pytest.approx(50, rel=0.2)
    noise.write(tmp_path / "noise.npz")
    again = load_noise_model(tmp_path / "noise.npz")
    assert isinstance(again, ChannelNoise) and type(again.models[0]) is type(first)
    torch.testing.assert_close(again.log_likelihood(noisy, signal), density, rtol=1e-4, atol=1e-4)
    described = rebuild(describe(noise))
    described.load_state_dict(noise.state_dict())
    torch.testing.assert_close(described.log_likelihood(noisy, signal), density)


def test_damaged_files_and_other_channels_are_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "noise.npz", channel_0=np.zeros(9, np.uint8))
    with pytest.raises(ValueError, match="channel 0 is damaged") as caught:
        load_noise_model(tmp_path / "noise.npz")
    assert "\n" not in str(caught.value)
    for call in (lambda n: n.sample(torch.zeros(1, 3, 8, 8)), lambda n: n.of(1)):
        with pytest.raises(ValueError, match=r"images of . channels, has noise models of 2"):
            call(ChannelNoise([GaussianNoise(1.0)] * 2))
    with pytest.raises(ValueError, match="got no models"):
        ChannelNoise([])


@pytest.mark.parametrize("kind", [HDN, DivNoising])
def test_vaes_estimate_gain_offset_and_floor_of_each_channel(kind, caplog):
    sizes = TINY if kind is HDN else dict(depth=1, filters=4, latents=2)
    noise = prepared(kind(channels=2, **sizes), two_cameras()).noise_model
    first, second = noise.models
    assert first.gain == pytest.approx(1, rel=0.15) and second.gain == pytest.approx(30, rel=0.15)
    assert -first.offset / first.gain == pytest.approx(100, rel=0.1)
    assert -second.offset / second.gain == pytest.approx(500, rel=0.2)
    assert second.min_variance > 100 * first.min_variance
    assert "noise of the channels differs" in caplog.text and "one at a time" in caplog.text


def test_channels_that_are_alike_are_no_matter(caplog):
    noisy = two_cameras()[:, :1]
    prepared(HDN(channels=2, **TINY), torch.cat([noisy, noisy.flip(-1)], dim=1))
    assert "channels" not in caplog.text


def test_one_noise_model_for_unlike_channels_is_told(caplog):
    prepared(HDN(GaussianNoise(5.0), channels=2, **TINY), two_cameras())
    assert "one noise model for all fits none" in caplog.text


def test_a_channel_without_noise_is_named():
    noisy = two_cameras()
    noisy[:, 1] = 7
    with pytest.raises(ValueError, match=r"channel 1: GaussianNoise\.estimate: frames are constant"):
        prepared(HDN(channels=2, **TINY), noisy)


def test_the_stabilized_sampler_takes_one_of_each_and_says_that_it_takes_no_shared_one(caplog):
    noisy = two_cameras(64)
    given = [GaussianNoise(gain=1.5, offset=-140.0), GaussianNoise(gain=25.0, offset=-12_000.0)]
    sampler = prepared(StabilizedSampler(ChannelNoise(given), channels=2), noisy)
    assert sampler.light.line[0].flatten().tolist() == [1.5, 25.0] and not caplog.text
    prepared(StabilizedSampler(given[0], channels=2), noisy)
    assert "one noise model for 2 channels is not used" in caplog.text
    with pytest.raises(ValueError, match="takes a GaussianNoise"):
        StabilizedSampler(ChannelNoise([given[0], MODELS["gmm"]]), channels=2)


def test_mirrorings_that_all_channels_allow():
    row, blur = MODELS["autoregressive"], MODELS["correlated"]
    assert list(ChannelNoise([row, GaussianNoise(1.0)]).mirrors) == ["y"]
    assert list(ChannelNoise([row, blur]).mirrors) == ["y"]
    assert ChannelNoise([GaussianNoise(1.0)] * 2).isotropic and not ChannelNoise([row, row]).isotropic


def test_residuals_of_several_channels_are_scored_and_drawn(tmp_path):
    noisy = two_cameras(32)[0]
    clean = noisy.mean((1, 2), keepdim=True).expand_as(noisy)
    white = GaussianNoise(6.0)
    row = residual_scores(noisy, clean, ChannelNoise([white, GaussianNoise(150.0)]))
    assert np.isfinite([row["nll"], row["expected_nll"], row["expected_std"]]).all()
    assert "expected_nll" not in residual_scores(
        noisy, clean, ChannelNoise([MODELS["autoregressive"], white])
    )
    for first in (white, MODELS["autoregressive"]):
        curves = residual_curves(noisy, {"clean": clean}, ChannelNoise([first, white]))
        assert ("expected" in curves["clean"]) == (first is white)
        residual_picture(tmp_path / "residuals.png", noisy, {"clean": clean}, curves)
