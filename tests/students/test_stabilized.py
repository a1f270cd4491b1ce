"""The student in the domain where every camera's noise has standard deviation 1."""

import pytest
import torch

from distill import DirectDenoiser, load_denoiser, psnr, specimen
from distill.runs.checkpoint import save_denoiser
from losses import L2, MeanVariance
from samplers import CorrelatedNoise, GaussianNoise
from samplers.noise.line import noise_line
from samplers.noise.split import LightSplit
from students import StabilizedUNet
from students.stabilized import LAGS


def pretrained(noisy: torch.Tensor, gain: float, offset: float, channels: int = 1) -> DirectDenoiser:
    student = StabilizedUNet(channels, channels)
    student.load_pretrained()
    mean, std = (f(dim=(0, 2, 3))[:, None, None] for f in (noisy.mean, noisy.std))
    student.prepare(noisy, mean, std, torch.full_like(mean, gain), torch.full_like(mean, offset))
    denoiser = DirectDenoiser(student, L2(), channels)
    denoiser.prepare(mean, std)
    return denoiser.eval()


def cells(**more) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    made = specimen(2, 128, seed=5, **more)
    noisy, clean = (torch.from_numpy(v).float()[:, None] for v in (made.noisy, made.clean))
    return noisy, clean, made.gain, made.offset


@torch.no_grad()
def test_the_shipped_weights_denoise_without_training():
    noisy, clean, gain, offset = cells()
    assert psnr(pretrained(noisy, gain, offset)(noisy), clean) > psnr(noisy, clean) + 7


@torch.no_grad()
def test_counts_of_another_unit_give_the_same_image():
    """Gain and black level are the camera's: 3 * counts + 500 is the same picture."""
    noisy, _, gain, offset = cells()
    once = pretrained(noisy, gain, offset)(noisy)
    other = pretrained(3 * noisy + 500, 3 * gain, 9 * offset - 1500 * gain)(3 * noisy + 500)
    torch.testing.assert_close((other - 500) / 3, once, rtol=2e-3, atol=0.05)


@torch.no_grad()
def test_noise_that_does_not_depend_on_brightness_is_gaussian():
    clean = cells()[1]
    torch.manual_seed(0)
    noisy = clean + clean.std() * torch.randn_like(clean)
    for gain in (0.0, 1e-9):
        denoiser = pretrained(noisy, gain, float(clean.var()))
        assert psnr(denoiser(noisy), clean) > psnr(noisy, clean) + 5
    assert denoiser.backbone.gain.item() == 0


@torch.no_grad()
def test_each_channel_has_its_own_line_and_is_denoised_by_itself():
    noisy, _, gain, offset = cells()
    one = pretrained(noisy, gain, offset)(noisy)
    two = torch.cat([noisy, 7 * noisy], dim=1)
    student = StabilizedUNet(2, 2)
    student.load_pretrained()
    mean, std = (f(dim=(0, 2, 3))[:, None, None] for f in (two.mean, two.std))
    factor = torch.tensor([1.0, 7.0])[:, None, None]
    student.prepare(two, mean, std, factor * gain, factor**2 * offset)
    denoiser = DirectDenoiser(student, L2(), 2)
    denoiser.prepare(mean, std)
    torch.testing.assert_close(denoiser.eval()(two), torch.cat([one, 7 * one], dim=1), rtol=2e-3, atol=0.05)


@torch.no_grad()
def test_less_light_is_denoised_as_noisier():
    noisy, clean, _, _ = cells()
    sigma = 10.0
    torch.manual_seed(0)
    first, _ = GaussianNoise(sigma).split(clean + sigma * torch.randn_like(clean), 0.5)
    denoiser = pretrained(noisy, 0.0, sigma**2)
    told, untold = (psnr(denoiser.image(first, share), clean) for share in (0.5, 1.0))
    assert told > untold + 0.5


@torch.no_grad()
def test_further_maps_start_as_a_small_spread(tmp_path):
    noisy, _, gain, offset = cells()
    student = StabilizedUNet(1, 2)
    student.load_pretrained()
    mean, std = noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1)
    student.prepare(noisy, mean, std, torch.full_like(mean, gain), torch.full_like(mean, offset))
    denoiser = DirectDenoiser(student, MeanVariance())
    denoiser.prepare(mean, std)
    maps = denoiser.eval().maps(noisy)
    torch.testing.assert_close(maps["mean"], pretrained(noisy, gain, offset)(noisy))
    assert 0 < maps["std"].mean() < 0.2 * std.item()
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    assert load_denoiser(tmp_path).maps(noisy)["std"].equal(maps["std"])


def test_the_line_of_each_channel_is_estimated():
    noisy, _, gain, _ = cells()
    gains, _ = noise_line(torch.cat([noisy, 7 * noisy], dim=1))
    assert gains.flatten().tolist() == pytest.approx([gain, 7 * gain], rel=0.15)
    assert noise_line(noisy, GaussianNoise(3.0))[1].item() == 9


def test_other_widths_have_no_weights():
    with pytest.raises(ValueError, match="width 40, got 8"):
        StabilizedUNet(width=8).load_pretrained()
    with pytest.raises(ValueError, match="multiple of in_channels"):
        StabilizedUNet(2, 3)


def test_what_it_is_told_of_correlated_noise_counts_there_only():
    made = specimen(2, 96, noise="lines")
    noisy, clean = (torch.from_numpy(v).float()[:, None] for v in (made.noisy, made.clean))
    light = LightSplit.fit(noisy, CorrelatedNoise.from_noise(noisy - clean, clean))
    mean, std = noisy.mean().view(1, 1, 1), noisy.std().view(1, 1, 1)
    scores = []
    for told in (light.correlation, torch.zeros(1, len(LAGS)), None):
        student = StabilizedUNet()
        student.prepare(noisy, mean, std, *light.line, told)
        student.load_pretrained()
        scores.append(psnr(student.denoise(noisy).detach(), clean))
        if told is None:
            assert not any(p.any() for p in student.told.parameters())
    assert scores[0] > scores[1] + 0.3 > scores[2] + 0.6


def test_channels_are_told_their_own_correlation():
    table = [[0.0, 0.0, 0.0], [0.5, 1.0, 0.5], [0.0, 0.0, 0.0]]
    light = LightSplit([CorrelatedNoise(table, offset=4.0), GaussianNoise(2.0)])
    first, second = light.correlation
    assert first[LAGS.index((0, 1))] == 0.5 and first[LAGS.index((1, 0))] == 0 and first[0] == 1
    assert second[0] == 1 and second[1:].count_nonzero() == 0
    assert LightSplit([GaussianNoise(2.0)]).correlation is None
