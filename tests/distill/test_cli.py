import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from safetensors.torch import load_file

from distill.__main__ import main
from distill.training.engine import PUBLISHED
from samplers import HDN, LIGHT, DivNoising

QUICK = [
    "--sampler", "HDN", "--sampler.levels", "2", "--sampler.latents", "2", "--sampler.filters", "4",
    "--sampler.blocks", "1", "--student", "UNet", "--student.depth", "2", "--student.filters", "4",
    "--steps", "2", "--refine_steps", "1", "--batch_size", "2", "--micro_batch", "2", "--patch_size",
    "16", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def stack(noisy, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", noisy.mean(0))
    return Path("noisy.tif")


def test_train_info_predict_evaluate(stack, capsys):
    assert main(["train", "noisy.tif", "--loss", "L1", "--out", "run", *QUICK]) == 0
    assert "distill predict run noisy.tif" in capsys.readouterr().out
    assert main(["info", "run"]) == 0
    out = capsys.readouterr().out
    assert "levels=2" in out and "median" in out
    assert main(["info", "noisy.tif"]) == 0
    assert "TYX" in capsys.readouterr().out
    assert main(["predict", "run", "noisy.tif", "--out", "denoised.tif"]) == 0
    assert tifffile.imread("denoised.tif").shape == (4, 48, 40)
    assert main(["evaluate", "run", "noisy.tif", "clean.tif", "--draws", "1", "2", "--cost"]) == 0
    out = capsys.readouterr().out
    assert "2 draws" in out and "\n- " in out and "A step takes" in out
    assert "A step takes" in Path("run/cost.txt").read_text()
    assert main(["evaluate", "run", "noisy.tif", "--draws", "1", "--out", "alone"]) == 0
    out = capsys.readouterr().out
    assert "residual std" in out and "differ" not in out and Path("alone/residuals.png").exists()


def test_several_runs_and_data_sets_make_one_table(stack, capsys):
    for out in ("a", "b"):
        assert main(["train", "noisy.tif", "--out", out, *QUICK]) == 0
    capsys.readouterr()
    pair = ["--data", "noisy.tif", "clean.tif"]
    assert main(["table1", "--run", "a", "--run", "b", *pair, *pair, "--draws", "1", "--out", "table"]) == 0
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split("|")[1:3] for row in rows] == [
        [f" {data:<7} ", f"   {run} "] for run in "ab" for data in ("noisy", "noisy_2")
    ]
    assert Path("table/table1.md").exists()


@pytest.mark.parametrize("given", [[], ["true"], ["false"]])
def test_a_flag_needs_no_value(stack, given, capsys):
    assert main(["train", "--tensorboard", *given, "noisy.tif", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tensorboard"] is (given != ["false"])


def test_the_seed_is_that_of_the_networks_too(stack):
    for out, seed in {"a": 0, "b": 0, "c": 1}.items():
        torch.manual_seed(len(out))  # whatever was drawn before
        torch.rand(ord(out))
        assert main(["train", "noisy.tif", "--out", out, "--seed", str(seed), *QUICK]) == 0
    for name in ("sampler", "student"):
        first, again, other = (load_file(f"{out}/{name}.safetensors") for out in "abc")
        assert all(value.equal(again[key]) for key, value in first.items())
        assert not all(value.equal(other[key]) for key, value in first.items())


def test_config_files_and_their_printing(stack, capsys):
    assert main(["train", "noisy.tif", "--out", "a", "--loss", "losses.Huber", "--loss.delta", "0.5",
                 "--print_config", *QUICK]) == 0  # fmt: skip
    Path("config.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "config.yaml", "--out", "b"]) == 0
    assert main(["info", "b"]) == 0
    assert "Huber(delta=0.5)" in capsys.readouterr().out
    Path("config.yaml").write_text("stepz: 3\n")
    assert main(["train", "noisy.tif", "--config", "config.yaml", "--out", "c"]) == 2
    assert "stepz" in capsys.readouterr().err and not Path("c").exists()


def test_a_fitted_noise_model_goes_into_training_by_its_file(stack, capsys):
    assert main(["noise-model", "fit", "noisy.tif", "--kind", "gaussian", "--out", "noise.npz"]) == 0
    assert "nats/pixel" in capsys.readouterr().err and Path("noise.png").exists()
    for name, given in {
        "file": ["noise.npz"],
        "class": ["GaussianNoise", "--sampler.noise_model.std", "9"],
    }.items():
        options = [*QUICK, "--sampler.noise_model", *given]
        assert main(["train", "noisy.tif", "--out", name, *options]) == 0
        Path("noise.npz").unlink(missing_ok=True)  # a run keeps its own copy
        assert main(["info", name]) == 0
        assert "GaussianNoise(" in capsys.readouterr().out
        assert main(["predict", name, "noisy.tif", "--out", f"{name}.tif", "--draws", "2"]) == 0


def test_structured_noise_from_the_command_line(stack, capsys):
    fit = ["noise-model", "fit", "noisy.tif", "--kind", "autoregressive", "--context", "row"]
    assert main([*fit, "--steps", "2", "--out", "noise.npz"]) == 0
    options = [*QUICK, "--sampler", "StructuredNoiseVAE", "--sampler.noise_model", "noise.npz"]
    assert main(["train", "noisy.tif", "--out", "run", *options]) == 0
    assert main(["predict", "run", "noisy.tif", "--out", "denoised.tif", "--draws", "1"]) == 0


def test_channels_follow_the_image_and_the_loss(stack, noisy):
    tifffile.imwrite("two.tif", np.stack([noisy, 2 * noisy], 1), imagej=True, metadata={"axes": "TCYX"})
    assert main(["train", "two.tif", "--loss", "Quantiles", "--out", "run", *QUICK]) == 0
    assert main(["predict", "run", "two.tif", "--out", "denoised.tif"]) == 0
    for name in ("denoised.tif", "denoised_q05.tif", "denoised_q95.tif"):
        assert tifffile.imread(name).shape == (4, 2, 48, 40)


def test_classes_of_ones_own_by_dotted_path(stack, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    Path("mine.py").write_text(
        "from losses import L2\n"
        "class Half(L2):\n"
        "    def __init__(self, power: float = 2.0):\n"
        "        super().__init__()\n"
        "        self.power = power\n"
        "    def forward(self, prediction, draws):\n"
        "        return (draws - prediction).abs().pow(self.power).mean()\n"
    )
    assert main(["train", "noisy.tif", "--loss", "mine.Half", "--loss.power", "1.5", "--out", "run",
                 *QUICK]) == 0  # fmt: skip
    assert main(["info", "run"]) == 0
    assert "Half(power=1.5)" in capsys.readouterr().out


def test_sums_of_losses_as_json_as_yaml_and_as_a_sum(stack, capsys):
    listed = [{"class_path": "losses.L1"}, {"class_path": "losses.Huber", "init_args": {"delta": 0.5}}]
    as_json = ["--loss", "WeightedSum", "--loss.losses", json.dumps(listed), "--loss.weights", "[1, 0.1]"]
    Path("sum.yaml").write_text(
        "loss:\n  class_path: losses.WeightedSum\n  init_args:\n    losses:\n"
        "    - class_path: losses.L1\n    - class_path: losses.Huber\n      init_args: {delta: 0.5}\n"
        "    weights: [1, 0.1]\n"
    )
    for i, arguments in enumerate([as_json, ["--config", "sum.yaml"]]):
        assert main(["train", "noisy.tif", *arguments, "--out", f"run{i}", *QUICK]) == 0
        assert main(["info", f"run{i}"]) == 0
        assert "WeightedSum(losses=[L1(), Huber(delta=0.5)], weights=[1.0, 0.1])" in capsys.readouterr().out
    Path("own.py").write_text("from losses import L2\nclass Own(L2): ...\n")
    short = ["--loss", "L1 + 0.1*LPIPS +2 * own.Own", "--print_config"]
    assert main(["train", "noisy.tif", *short]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["loss"]["init_args"]
    assert [each["class_path"] for each in printed["losses"]] == ["losses.L1", "losses.LPIPS", "own.Own"]
    assert printed["weights"] == [1.0, 0.1, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "allowed are denoise, train, predict"),
        (["train", "missing.tif"], "missing.tif: no such file"),
        (["train", "noisy.tif", "--axes", "YX"], "do not fit"),
        (["train", "noisy.tif", "--axes", "QQQ"], "axes"),
        (["train", "empty.tif"], "empty.tif"),
        (["train", "text.tif"], "text.tif"),
        (["train", "nan.tif"], "NaN"),
        (["train", "flat.tif"], "constant"),
        (["train", "rgb.tif"], "RGB"),
        (["train", "noisy.tif", "--loss", "L3"], "allowed are L1, L2"),
        (["train", "noisy.tif", "--loss", "nowhere.L3"], "nowhere"),
        (["train", "noisy.tif", "--loss", "L1 + L3"], "got 'L3', allowed are L1, L2"),
        (["train", "noisy.tif", "--loss", "L1 + x*L2"], "allowed is a sum such as"),
        (["train", "noisy.tif", "--loss", "L1 + 0*L2"], "a positive weight"),
        (["train", "noisy.tif", "--loss", "L1 + Quantiles"], "equally many outputs"),
        (
            ["train", "noisy.tif", *QUICK, "--loss", "Quantiles", "--student.out_channels", "2"],
            "set its out_channels to 3",
        ),
        (["train", "noisy.tif", "--loss", "Tukey", "--draws", "2"], "draws: got 2, must be at least 8"),
        (["train", "noisy.tif", "--loss=L3"], "allowed are L1, L2"),
        (["train", "noisy.tif", "--sampler", "VDN"], "allowed are"),
        (["train", "noisy.tif", "--sampler.layers", "3"], "layers"),
        (["train", "noisy.tif", "--sampler.noise_model", "absent.npz"], "absent.npz: no such file"),
        (["train", "noisy.tif", "--sampler.noise_model", "GausianNoise"], "GausianNoise: no such file"),
        (["noise-model", "noisy.tif"], "noise-model fit"),
        (["noise-model", "fit", "noisy.tif", "--out", "noise.txt"], "ends in .npz"),
        (["train", "noisy.tif", "--stepz", "3"], "stepz"),
        (["train", "noisy.tif", "--steps", "many"], "steps"),
        (["train", "noisy.tif", "--device", "cuda:11"], "device"),
        (["train"], "images"),
        (["train", "noisy.tif", "--loss", "Huber", "--loss.delta", "-1"], "delta"),
        (["predict", "no_run", "noisy.tif", "--out", "x.tif"], "no such file"),
        (["predict", "no_run", "noisy.tif"], "out"),
        (["evaluate", "no_run", "noisy.tif", "noisy.tif"], "no such file"),
        (["denoise", "noisy.tif"], "missing: --out (try distill denoise --help)"),
        (["evaluate", "a", "b", "noisy.tif", "noisy.tif"], "try distill evaluate --help"),
        (["table1", "--run", "a"], "data"),
        (["table1", "--run", "a", "--data", "noisy.tif"], "data"),
        (["export", "no_run"], "no such file"),
        (["export", "no_run", "--format", "tensorflow"], "torch-export"),
        (["info", "nothing"], "nothing: no such file"),
        (["info", "pipe"], "pipe: is a pipe or a device"),
        (["info", "huge.tif"], "beyond 1e+18"),
        (["train", "huge.tif"], "beyond 1e+18"),
        (["predict", "pretrained", "huge.tif", "--out", "x.tif"], "beyond 1e+18"),
        (["train", "/dev/zero"], "is a pipe or a device"),
        (["train", "noisy.tif", "--config", "pipe"], "is a pipe or a device"),
        (["train", "noisy.tif", "--config", "empty.tif"], "has no options"),
        (["train", "noisy.tif", "--config", "binary.yaml"], "not valid YAML"),
        (["train", "noisy.tif", "--config", "bomb.yaml"], "bomb.yaml: has 3.58e+10 values"),
        (["train", "noisy.tif", "--config=loop.yaml"], "not valid YAML"),
        (["train", "noisy.tif", "--config", "list.yaml"], "has no options"),
        (["train", "noisy.tif", "--sampler", "raises.X"], "raises.py, line 1: ZeroDivisionError"),
        (["train", "noisy.tif", "--loss", "L1 + exits.X"], "exits.py, line 2: SystemExit"),
        (["train", "noisy.tif", "--config", "exits.yaml"], "exits.py, line 2: SystemExit"),
        (["train", "noisy.tif", "--seed", str(2**70)], "seed: got"),
        (["train", "noisy.tif", "--optimizer", "LBFGS"], "allowed are AdamW, Adamax"),
        (["train", "noisy.tif", "--out", "noisy.tif"], "noisy.tif: is a file"),
        (["noise-model", "fit", "noisy.tif", "--out", "n.npz", "--data", "text.tif"], "text.tif"),
    ],
)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(arguments, message, stack, noisy, capsys):
    tifffile.imwrite("nan.tif", np.where(noisy > 200, np.nan, noisy), photometric="minisblack")
    tifffile.imwrite("flat.tif", np.full((2, 64, 64), 7, np.uint8))
    tifffile.imwrite("rgb.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    Path("empty.tif").write_bytes(b"")
    Path("text.tif").write_text("not an image")
    if not hasattr(os, "mkfifo") and {"pipe", "/dev/zero"} & {*arguments}:
        pytest.skip("Windows has no such files")
    bad_files(noisy)
    before = sorted(Path().rglob("*"))
    for module in ("raises", "exits"):
        sys.modules.pop(module, None)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err, captured.err
    assert captured.err.count("\n") == 1 and not captured.out
    assert sorted(Path().rglob("*")) == before


def bad_files(noisy):
    tifffile.imwrite("huge.tif", noisy.astype(np.float64) * 1e300, photometric="minisblack")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
    Path("binary.yaml").write_bytes(bytes(range(128, 256)))
    aliases = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)]
    Path("bomb.yaml").write_text("".join(["a0: &a0 [x, x, x, x, x, x, x, x]\n", *aliases]))
    Path("loop.yaml").write_text("steps: &a [*a]\n")
    Path("list.yaml").write_text("- steps\n")
    Path("raises.py").write_text("1 / 0\n")
    Path("exits.py").write_text("import sys\nsys.exit(0)\n")
    Path("exits.yaml").write_text("student:\n  class_path: exits.X\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "a.tif"), 2, "a.tif: No space left on device; check space"),
        (MemoryError("Unable to allocate 2 GiB"), 2, "out of memory (Unable to allocate 2 GiB)"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), 2, "out of memory (CUDA out of memory. Tried)"),
        (ImportError("libtorch.so: failed to map segment from shared object"), 2, "out of memory (libtorch"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=repr,
)
def test_what_the_machine_refuses_is_one_line(error, code, line, capsys, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr("distill.cli.run", fails)
    assert main(["info", "run"]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"distill: {line}") and said.count("\n") == 1


def test_a_bug_shows_its_traceback(monkeypatch):
    monkeypatch.setattr("distill.cli.run", lambda *_: {}["bug"])
    with pytest.raises(KeyError):
        main(["info", "run"])


def test_help_and_version_do_not_import_torch():
    for flag in ("--help", "--version"):
        code = f"import sys; from distill.__main__ import main; main(['{flag}'])"
        code += "; assert 'torch' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


COMMANDS_HELP = ["train", "import", "predict", "evaluate", "table1", "report", "calibrate", "export", "cache",
                 "info", "noise-model fit"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS_HELP)
def test_every_command_explains_itself(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: distill " + command in text and "torch.nn" not in text and "type:" not in text
    assert len(text.splitlines()) <= 130 and "--on_log" not in text
    options = re.findall(r"^  -\S.*(?:\n    .*)*", text, re.MULTILINE)
    assert len(options) >= 3
    for option in options:
        assert re.search(r"(  |\n +)[\"\w]", option[3:]), option


def test_the_options_of_a_class(capsys):
    assert main(["train", "--sampler.help", "HDN"]) == 0
    assert "--sampler.free_bits X" in capsys.readouterr().out


def test_the_traceback_of_an_error_on_request(stack, capsys, monkeypatch):
    monkeypatch.setenv("DISTILL_TRACEBACK", "1")
    assert main(["train", "missing.tif"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_what_is_not_told_is_pretrained(stack, capsys):
    assert main(["train", "noisy.tif", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["sampler"]["class_path"] == "samplers.StabilizedSampler"
    assert printed["student"]["class_path"] == "students.StabilizedUNet" and printed["init"] == "pretrained"


@pytest.mark.parametrize("named", [["--sampler", "HDN"], ["--sampler=samplers.HDN"]])
def test_hdn_is_light_unless_told(named, stack, capsys):
    assert main(["train", "noisy.tif", *named, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert LIGHT.items() <= printed["sampler"]["init_args"].items()


def test_another_sampler_keeps_its_own_defaults(stack, capsys):
    assert main(["train", "noisy.tif", "--sampler", "DivNoising", "--print_config"]) == 0
    own = yaml.safe_load(capsys.readouterr().out)["sampler"]["init_args"]
    assert own["filters"] == DivNoising().filters and own["latents"] == DivNoising().latents


def test_the_published_settings_are_the_same_from_the_command_line(stack, capsys):
    published = Path(__file__).parents[2] / "recipes" / "published.yaml"
    assert main(["train", "noisy.tif", "--config", str(published), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {k: printed[k] for k in PUBLISHED} == PUBLISHED
    assert printed["student"]["init_args"]["shared_convs"] is True
    published = HDN()
    given = {k: v for k, v in printed["sampler"]["init_args"].items() if v is not None}
    assert all(getattr(published, k) == v for k, v in given.items())


def test_a_run_to_start_from_says_which_networks(stack, capsys):
    assert main(["train", "noisy.tif", "--out", "first", *QUICK]) == 0
    begun = [
        "train",
        "noisy.tif",
        "--out",
        "second",
        "--from",
        "first",
        "--steps",
        "1",
        "--refine_steps",
        "0",
    ]
    assert main([*begun, "--print_config"]) == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text[text.index("images:") :])
    assert printed["sampler"]["init_args"]["levels"] == 2 and printed["student"]["init_args"]["depth"] == 2
    assert printed["sampler"]["init_args"]["noise_model"] is None and printed["init"] == "first"
    assert (
        main(
            [*begun, "--patch_size", "16", "--batch_size", "2", "--val_fraction", "0", "--refine_steps", "0"]
        )
        == 0
    )
