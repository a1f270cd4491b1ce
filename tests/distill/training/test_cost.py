import pytest

from distill import UserError, train
from distill.training.cost import training_cost
from samplers import LinearGaussianField, StabilizedSampler
from students import StabilizedUNet

QUICK = dict(steps=3, refine_steps=2, batch_size=4, micro_batch=2, patch_size=16, device="cpu")


def test_what_a_student_costs_and_when_it_has_paid(noisy, tiny_hdn, tiny_unet, tmp_path):
    run = train(noisy, tiny_hdn, tiny_unet, out=tmp_path, **QUICK).path
    stored = (run / "student.safetensors").read_bytes()
    cost = training_cost(run, noisy, repeats=2, device="cpu")
    assert cost.both_step > cost.sampler_step > 0 and cost.student_step > 0
    extra = 3 * (cost.both_step - cost.sampler_step) + 2 * cost.student_step
    assert cost.extra_training == pytest.approx(extra)
    assert cost.break_even == pytest.approx(extra / (1000 * cost.seconds_per_draw - cost.seconds_per_pass))
    assert "paid for itself" in str(cost) and (run / "student.safetensors").read_bytes() == stored
    assert (run / "cost.txt").read_text() == f"{cost}\n"


def test_a_sampler_that_was_not_trained_has_no_cost(noisy, tiny_unet, tmp_path):
    train(noisy, LinearGaussianField(), tiny_unet, out=tmp_path, **QUICK)
    with pytest.raises(UserError, match="co-trained"):
        training_cost(tmp_path, noisy, device="cpu")


def test_the_cost_of_networks_that_learn_from_the_light(noisy, tmp_path):
    run = train(noisy, StabilizedSampler(width=8, spread_width=8), StabilizedUNet(width=8), out=tmp_path,
                init="none", **QUICK)  # fmt: skip
    cost = training_cost(run.path, noisy, repeats=1, device="cpu")
    assert cost.both_step > 0 and cost.student_step > 0
