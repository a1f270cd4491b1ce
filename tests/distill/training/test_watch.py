"""A sampler that collapses or explodes is named, once, with what helps."""

import json

import torch

from distill import train
from distill.training.watch import Watch
from samplers import HDN, GaussianNoise

QUICK = dict(batch_size=2, patch_size=16, validate_every=1000, device="cpu")


def told(losses, kl, caplog) -> list[str]:
    watch = Watch(lr=2e-3)
    for step, (loss, nats) in enumerate(zip(losses, kl, strict=True), start=1):
        numbers = watch(
            step, {"sampler_loss": loss}, {"kl_1": torch.tensor(nats / 2), "kl_2": torch.tensor(nats / 2)}
        )
        assert sum(numbers.values()) == nats
    return [record.message for record in caplog.records]


def test_a_collapse_is_named_with_its_cure(caplog):
    (line,) = told([7.0] * 500, [200.0] * 50 + [2.0] * 450, caplog)
    assert "has collapsed" in line and "kl_warmup" in line and "free_bits" in line and "\n" not in line
    assert int(line.split(":")[0].removeprefix("step ")) <= 150


def test_an_explosion_is_named_with_its_cure(caplog):
    (line,) = told([4.0] * 45 + [1e9] * 455, [300.0] * 500, caplog)
    assert "diverges" in line and "lr (now 0.002)" in line and "clip" in line and "hot pixels" in line
    assert int(line.split(":")[0].removeprefix("step ")) <= 70


def test_a_sound_training_a_spike_and_a_negative_loss_are_not(caplog):
    assert not told([9.0, *[4.0] * 100, 1e5, *[3.0] * 100], [300.0] * 202, caplog)
    assert not told([-3.0 - 0.01 * i for i in range(200)], [300.0] * 200, caplog)


def test_a_skipped_step_counts_for_nothing():
    assert Watch(1e-3)(1, {}, {"kl": torch.tensor(float("nan"))}) == {}


def test_kl_of_every_level_is_logged_while_the_sampler_learns(noisy, tiny_hdn, tiny_unet, tmp_path):
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, steps=10, refine_steps=10, **QUICK)
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["kl_1"] > 0 and first["kl_2"] > 0 and not {"kl_1", "kl_2"} & second.keys()


def test_a_sampler_whose_noise_model_explains_everything_is_named(noisy, tiny_unet, tmp_path, caplog):
    hdn = HDN(GaussianNoise(1e4), levels=2, latents=2, filters=4, blocks=1, patch_size=16)
    train(noisy, hdn, tiny_unet, out=tmp_path, steps=180, refine_steps=0, **QUICK)
    assert caplog.text.count("has collapsed") == 1
