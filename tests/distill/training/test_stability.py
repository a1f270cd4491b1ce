"""Steps that are not finite, and images that nobody hoped for."""

import json

import numpy as np
import pytest
import torch

from distill import UserError, specimen, train
from losses import L2
from samplers import HDN, GaussianNoise
from samplers.hdn import LIGHT
from students import StabilizedUNet, UNet

QUICK = dict(batch_size=4, micro_batch=2, patch_size=16, validate_every=3, device="cpu")


def state(module) -> torch.Tensor:
    """Weights and buffers: what a skipped step must not change."""
    return torch.cat(
        [v.detach().double().flatten() for v in module.state_dict().values() if v.is_floating_point()]
    )


def breaks(sampler, steps: set[int], value: float) -> list:
    """Makes the sampler see `value` in place of its images in these steps (2 micro-batches each)."""
    step, seen = sampler.training_step, []

    def broken(x):
        if not sampler.training:
            return step(x)
        seen.append(state(sampler))
        return step(x * value if (len(seen) + 1) // 2 in steps else x)

    sampler.training_step = broken
    return seen


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_neither_network_and_is_counted(
    value, noisy, tiny_hdn, tiny_unet, tmp_path
):
    seen = breaks(tiny_hdn, {3, 4}, value)
    rows = []
    run = train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=6, refine_steps=1, on_log=rows.append,
                **QUICK)  # fmt: skip
    assert [row.get("skipped") for row in rows] == [1, 2, 2]  # steps 3, 6 and 7
    assert "sampler_loss" not in rows[0] and np.isfinite(rows[1]["sampler_loss"])
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)
    assert seen[4].equal(seen[6]) and seen[6].equal(seen[8]) and not seen[8].equal(seen[10])
    assert state(run.sampler).isfinite().all() and state(run.denoiser).isfinite().all()


def test_a_student_that_breaks_leaves_the_sampler_as_it_was(noisy, tiny_hdn, tiny_unet, tmp_path):
    class Broken(L2):
        calls = 0

        def forward(self, prediction, draws):
            Broken.calls += 1  # the first is the check before training
            return super().forward(prediction, draws) * (float("nan") if Broken.calls == 4 else 1)

    seen = breaks(tiny_hdn, set(), 1.0)
    train(noisy, tiny_hdn, tiny_unet, Broken(), tmp_path, steps=4, refine_steps=0,
          **(QUICK | dict(validate_every=9)))  # fmt: skip
    assert not seen[2].equal(seen[0]) and seen[4].equal(seen[2]) and not seen[6].equal(seen[4])


def test_ten_such_steps_in_a_row_end_the_run(noisy, tiny_hdn, tiny_unet, tmp_path):
    breaks(tiny_hdn, {2, *range(4, 30)}, float("nan"))
    with pytest.raises(
        UserError, match="step 13: the sampler's loss is nan; the last 10 steps updated nothing"
    ) as caught:
        train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=30, refine_steps=0, **QUICK)
    assert "\n" not in str(caught.value) and not (tmp_path / "student.safetensors").exists()


def test_a_stopped_run_remembers_what_it_skipped(noisy, tiny_hdn, tiny_unet, tmp_path):
    breaks(tiny_hdn, {2}, float("nan"))
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=3, refine_steps=0, **QUICK)
    rows = []
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=3, refine_steps=3, on_log=rows.append, **QUICK)
    assert rows[-1]["skipped"] == 1


def test_the_rate_fits_the_width_and_the_depth(noisy, tiny_hdn, tiny_unet, tmp_path):
    sizes = [(8, 1), (32, 2), (64, 1), (64, 5)]
    rates = [HDN(levels=1, filters=filters, blocks=blocks).learning_rate for filters, blocks in sizes]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 4e-4])
    assert HDN(**LIGHT).learning_rate == 2e-3
    assert 6e-4 < HDN(**LIGHT | dict(filters=48, growth=1.5)).learning_rate < 8e-4
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "own", steps=1, refine_steps=0, **QUICK)
    with pytest.raises(UserError, match=r"lr=0\.002, but got 0\.01"):
        train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "own", steps=1, refine_steps=0, lr=0.01, **QUICK)


def hot(images, rng):
    return np.where(rng.random(images.shape) < 1e-3, np.uint16(65535), images)


def bead(images, rng):
    y, x = np.mgrid[: images.shape[1], : images.shape[2]] - 20
    return rng.poisson(100 + 3e4 * np.exp(-(x**2 + y**2) / 8), images.shape).astype(np.uint16)


def with_dark_frame(images, rng):
    return np.concatenate([images[:-1], 0 * images[-1:]])


HOSTILE = {
    "hot pixels": hot,
    "single photons": lambda images, rng: rng.poisson((images / 400.0) ** 4),
    "dark background": lambda images, rng: images.clip(130) - 130,
    "darker": lambda images, rng: images.clip(150) - 150,
    "one photon": lambda images, rng: np.eye(64)[None].repeat(3, 0) * (np.arange(64) == 40),
    "dark frame": with_dark_frame,
    "offset": lambda images, rng: images + 1e4,
    "clipped": lambda images, rng: ((images - 110.0) * 8).clip(0, 255).astype(np.uint8),
    "bead": bead,
    "unit": lambda images, rng: images.astype(np.float32) / images.max(),
    "tiny": lambda images, rng: images * 1e-9,
    "huge": lambda images, rng: images * 1e9,
    "negative": lambda images, rng: images - 1000.0,
}


@pytest.mark.parametrize("share", [None, 0.0])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_train_and_denoise(kind, share, tmp_path):
    images = HOSTILE[kind](specimen(3, 64).noisy, np.random.default_rng(0))
    hdn = HDN(**LIGHT | dict(filters=8, levels=2, blocks=1))
    rows = []
    run = train(images, hdn, StabilizedUNet(), out=tmp_path, steps=4, refine_steps=1, on_log=rows.append,
                self_supervised=share, **(QUICK | dict(patch_size=32, validate_every=2)))  # fmt: skip
    assert all(np.isfinite(value) for row in rows for value in row.values()), rows
    assert "skipped" not in rows[-1]
    x = torch.from_numpy(images.astype(np.float32))[:, None]
    with torch.inference_mode():
        assert run.denoiser(x).isfinite().all() and run.sampler.sample(x, 2).isfinite().all()


def test_hostile_images_and_a_student_without_a_noise_line(tmp_path):
    for kind in ("hot pixels", "dark background", "huge"):
        images = HOSTILE[kind](specimen(3, 64).noisy, np.random.default_rng(0))
        rows = []
        hdn, unet = HDN(**LIGHT | dict(filters=8, levels=2, blocks=1)), UNet(depth=2, filters=4)
        train(images, hdn, unet, out=tmp_path / kind, steps=4, refine_steps=1, on_log=rows.append, **QUICK)
        assert all(np.isfinite(value) for row in rows for value in row.values()), (kind, rows)


@pytest.mark.parametrize("images", [np.full((3, 64, 64), 7.0), np.arange(64.0) + np.zeros((3, 64, 1))])
def test_images_without_noise_are_refused_in_one_line(images, tmp_path):
    hdn = HDN(**LIGHT | dict(filters=8, levels=2, blocks=1))
    with pytest.raises(UserError, match=r"constant|no noise") as caught:
        train(images, hdn, StabilizedUNet(), out=tmp_path / "run", steps=1, **(QUICK | dict(patch_size=32)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_hot_pixel_pulls_with_a_bounded_force():
    signal = torch.zeros(3, requires_grad=True)
    density = GaussianNoise(1.0).log_likelihood(torch.tensor([29.0, 31.0, 6e4]), signal)
    density.sum().backward()
    assert signal.grad.tolist() == pytest.approx([29.0, 30.0, 30.0])
    assert density.detach().diff()[0].item() == pytest.approx(-(30 * 31 - 450 - 29**2 / 2))
