"""No argument of a public function is accepted silently that means nothing."""

from pathlib import Path

import pytest

from distill import UserError, cache_draws, calibrate, evaluate, export, predict, report, train, training_cost
from distill.evaluation.evaluate import evaluate_all
from distill.noise_fitting.fit import fit_noise_model
from samplers import StabilizedSampler
from students import StabilizedUNet

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "given",
    [
        {"clip": -1}, {"clip": 0.0}, {"clip": NAN}, {"patience": -1}, {"patience": 0}, {"seed": -1},
        {"seed": 2**64}, {"lr": NAN}, {"lr": INF}, {"lr": -1e-3}, {"student_lr": NAN}, {"steps": -1},
        {"steps": 2.5}, {"steps": "many"}, {"batch_size": True}, {"ema": 1}, {"ema": NAN}, {"out": ""},
        {"out": "a\0b"}, {"axes": ""}, {"init": " "}, {"val_fraction": -0.1}, {"self_supervised": NAN},
        {"draws": 0}, {"optimizer": "LBFGS"}, {"optimizer": "SparseAdam"}, {"optimizer": "Optimizer"},
    ],
    ids=str,
)  # fmt: skip
def test_of_train(given, noisy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((name, _),) = given.items()
    with pytest.raises(UserError, match=f"^{name}: got "):
        train(noisy, StabilizedSampler(), StabilizedUNet(), device="cpu", **given)
    assert not [*Path().iterdir()]


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (predict, "draws", -1), (predict, "halo", -5), (predict, "tile", -1), (predict, "tile", 5),
        (predict, "out", ""), (cache_draws, "draws", 0), (cache_draws, "tile", -1), (cache_draws, "halo", -5),
        (cache_draws, "keep", 0), (cache_draws, "out", ""), (evaluate, "draws", [1, 0]),
        (evaluate, "frames", -1), (evaluate, "frames", 0), (evaluate, "out", ""), (evaluate_all, "out", ""),
        (calibrate, "level", NAN), (calibrate, "level", 1), (export, "out", ""), (report, "out", ""),
        (training_cost, "repeats", 0), (fit_noise_model, "seed", -1), (fit_noise_model, "held_out", NAN),
        (fit_noise_model, "n_coeff", 0), (fit_noise_model, "steps", 0), (fit_noise_model, "out", ""),
    ],
)  # fmt: skip
def test_of_every_other_function(function, name, value, noisy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {
        predict: {"run": "run", "noisy": noisy}, evaluate: {"run": "run", "noisy": noisy},
        cache_draws: {"run": "run", "images": noisy, "out": "new"}, report: {"runs": "run"},
        calibrate: {"run": "run", "noisy": noisy, "clean": noisy}, export: {"run": "run"},
        training_cost: {"run": "run", "noisy": noisy}, fit_noise_model: {"images": noisy, "out": "new.npz"},
        evaluate_all: {"runs": [], "data": []},
    }[function]  # fmt: skip
    with pytest.raises(UserError, match=f"^{name}: got "):
        function(**needed | {name: value})
    assert not [*Path().iterdir()]
