"""Steps from a time: what is measured, and that a run keeps its plan."""

import copy
import json

import pytest
import torch

from distill import UserError, train
from distill.__main__ import main
from distill.training import budget
from distill.training.budget import seconds
from samplers import FunctionSampler, StabilizedSampler

QUICK = dict(batch_size=2, patch_size=16, device="cpu", validate_every=2)


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90), ("10min", 600), ("1.5 h", 5400)])
def test_times(text, wanted):
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["10", "ten minutes", "-5min", "0s", "1e3s", ""])
def test_what_is_no_time_is_one_line(text):
    with pytest.raises(UserError, match=r"90s, 10min or 1\.5h"):
        seconds(text)


def last_step(out) -> int:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def test_steps_fill_the_time_and_a_resumed_run_keeps_its_plan(
    noisy, tiny_hdn, tiny_unet, tmp_path, monkeypatch
):
    took = {True: 20.0, False: 10.0}
    monkeypatch.setattr(budget.Trial, "seconds_to_check", lambda _: 0.0)
    monkeypatch.setattr(budget.Trial, "seconds_a_step", lambda _, co_training: took[co_training])
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "run", budget="90s", **QUICK)
    assert last_step(tmp_path / "run") == 2 + 4  # half of 85 s each
    took[True] = 1e-3  # a faster machine must not change it
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "run", budget="90s", **QUICK)
    assert last_step(tmp_path / "run") == 6


def test_a_frozen_sampler_leaves_all_the_time_to_the_student(noisy, tiny_unet, tmp_path, monkeypatch):
    monkeypatch.setattr(budget.Trial, "seconds_to_check", lambda _: 1.0)
    monkeypatch.setattr(budget.Trial, "seconds_a_step", lambda _, co_training: 9.0)
    train(noisy, FunctionSampler(lambda x: x), tiny_unet, out=tmp_path, budget="90s", **QUICK)
    assert last_step(tmp_path) == 8


@pytest.mark.parametrize("measured", [0.5, 1.0, 2.0])
def test_it_ends_in_time_if_the_machine_is_not_as_fast_as_it_was_measured(
    noisy, tiny_unet, tmp_path, monkeypatch, measured
):
    clock = [0.0]

    def draw(x):  # once a step
        clock[0] += 1.0
        return x

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(budget.Trial, "seconds_to_check", lambda _: 0.0)
    monkeypatch.setattr(budget.Trial, "seconds_a_step", lambda _, co_training: measured)
    settings = QUICK | {"validate_every": 1000}
    train(noisy, FunctionSampler(draw), tiny_unet, out=tmp_path, budget="100s", **settings)
    assert 85 <= last_step(tmp_path) <= 97
    *_, before, last = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert last["lr"] < 0.1 * before["lr"] or last["lr"] == 0


def test_without_a_number_of_steps_it_has_minutes(noisy, tiny_hdn, tiny_unet, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(budget.Trial, "seconds_a_step", lambda _, co_training: 100.0)
    caplog.set_level("INFO")
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "nothing", **QUICK)
    assert last_step(tmp_path / "nothing") == 4 + 4 and "about 15min: 4 steps of both" in caplog.text
    assert (
        "8 steps are too few for networks that start from random weights, a step takes 1e+02 s" in caplog.text
    )
    caplog.clear()
    train(noisy, StabilizedSampler(), tiny_unet, out=tmp_path / "shipped", **QUICK)
    assert last_step(tmp_path / "shipped") == 1 + 1 and "too few" not in caplog.text
    with pytest.raises(UserError, match="pass either budget, or steps"):
        train(noisy, tiny_hdn, tiny_unet, out=tmp_path / "both", budget="1min", steps=3, **QUICK)
    assert not (tmp_path / "both").exists()


def test_measuring_changes_nothing(noisy, tiny_hdn, tiny_unet, tmp_path, monkeypatch):
    measure, seen = budget.Trial.seconds_a_step, []

    def watched(trial, co_training):
        modules = (trial.teach.sampler, trial.learn.denoiser)
        before = [copy.deepcopy(module.state_dict()) for module in modules]
        state = torch.get_rng_state()
        seen.append(measure(trial, co_training))
        assert torch.get_rng_state().equal(state)
        for module, kept in zip(modules, before, strict=True):
            assert all(value.equal(kept[name]) for name, value in module.state_dict().items())
        return 30.0

    monkeypatch.setattr(budget.Trial, "seconds_a_step", watched)
    train(noisy, tiny_hdn, tiny_unet, out=tmp_path, budget="80s", **QUICK)
    assert len(seen) == 2 and all(0 < each < 30 for each in seen)


def test_the_command_line_takes_it(tmp_path, capsys):
    assert main(["train", "noisy.tif", "--budget", "soon"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
