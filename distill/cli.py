"""Command-line arguments from the signatures of train, predict, evaluate; class names or dotted paths
for sampler, student and loss."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import nn

import losses
import samplers
import students
from distill.errors import UserError
from distill.evaluation import calibration, evaluate, tables
from distill.exporting import export
from distill.images.describe import describe_image
from distill.images.sources import as_stack
from distill.noise_fitting import fit
from distill.prediction import cache, predict
from distill.reporting import page
from distill.runs.describe import describe_run
from distill.training import engine

ROLES = {
    "sampler": (samplers, samplers.PosteriorSampler, "HDN"),
    "student": (students, nn.Module, "UNet"),
    "loss": (losses, losses.Loss, "L2"),
}


def run(command: str, arguments: list[str]) -> None:
    sys.path.append("")  # dotted paths may name files in the working folder
    commands = {"train": _train, "predict": _predict, "evaluate": _evaluate, "calibrate": _calibrate}
    commands |= {"report": _report, "export": _export, "cache": _cache, "noise-model": _noise_model}
    commands |= {"info": _info}
    commands[command](arguments)


class Parser(jsonargparse.ArgumentParser):
    """One line for every mistake."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise UserError(f"{message} (try {self.prog} --help)") from ex


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"distill {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    return parser


def _train(arguments: list[str]) -> None:
    parser = _parser("train", "Co-train a posterior sampler and its one-pass student on noisy images.")
    parser.add_argument("images", type=str, help="noisy TIFF, in raw counts")
    for role, (package, base, default) in ROLES.items():
        names = ", ".join(_public_classes(package, base))
        parser.add_argument(
            f"--{role}",
            type=base,
            default={"class_path": f"{package.__name__}.{default}"},
            help=f"one of {names}, or a dotted path of your own; `--{role}.help NAME` for its options"
            + ("; or a sum: '1*L1 + 0.1*LPIPS'" if role == "loss" else ""),
        )
    parser.add_function_arguments(engine.train, skip={"images", *ROLES})
    arguments = [_full_name(arguments, i) for i in range(len(arguments))]
    config = parser.parse_args(arguments)
    torch.manual_seed(config.seed)  # of the networks' initial weights
    try:
        chosen = parser.instantiate(config)
        if _set_channels(config, len(chosen.loss.outputs)):
            chosen = parser.instantiate(config)
    except ValueError as error:  # a constructor's own check
        raise UserError(str(error)) from None
    finished = engine.train(**_without_config(chosen))
    print(f"{finished.path}: done. Now: distill predict {finished.path} {config.images} --out clean.tif")


def _set_channels(config: jsonargparse.Namespace, outputs: int) -> bool:
    """Networks made for 1 channel, as they are unless told, take and give those of image and loss.
    True where that changed anything."""
    channels, changed = as_stack(config.images, config.axes).frames.shape[1], False
    for role, needed in {
        "sampler": {"channels": channels},
        "student": {"in_channels": channels, "out_channels": channels * outputs},
    }.items():
        given = config[role].get("init_args") or {}
        for name, value in needed.items():
            if given.get(name) == 1 and value != 1:
                given[name], changed = value, True
    return changed


def _predict(arguments: list[str]) -> None:
    parser = _parser("predict", "Denoise images with a run's student, or average its sampler's draws.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("noisy", type=str, help="noisy TIFF, in raw counts")
    parser.add_argument("--out", type=str, required=True, help="TIFF to write")
    parser.add_function_arguments(predict.predict, skip={"run", "noisy", "out"})
    chosen = parser.parse_args(arguments)
    predict.predict(**_without_config(chosen))
    print(f"{chosen.out}: written")


def _evaluate(arguments: list[str]) -> None:
    parser = _parser("evaluate", "Compare draws and student with ground truth: PSNR, SSIM, time, memory.")
    parser.add_argument("paths", type=str, nargs="+", help="folders of runs, then TIFFs: a noisy one alone "
                        "(what its residuals tell), or pairs of noisy and ground truth")  # fmt: skip
    parser.add_argument("--out", type=str, help="folder; that of the run unless told, where there is one")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100], help="draws to average")
    parser.add_function_arguments(evaluate.evaluate, skip={"run", "noisy", "clean", "out", "draws"})
    chosen = _without_config(parser.parse_args(arguments))
    paths, out = chosen.pop("paths"), chosen.pop("out")
    runs = [path for path in paths if (Path(path) / "student.safetensors").exists()]
    files = paths[len(runs) :]
    if not runs or runs != paths[: len(runs)] or not files or (len(files) > 1 and len(files) % 2):
        raise UserError(
            f"evaluate: got {len(runs)} runs and {len(paths) - len(runs)} images in {' '.join(paths)}; pass "
            "folders of finished runs first, then a noisy TIFF, or pairs of noisy and ground truth"
        )
    data = list(zip(files[::2], files[1::2] or [None], strict=True))
    if len(runs) == len(data) == 1:
        print(tables.format_table(evaluate.evaluate(runs[0], *data[0], out, **chosen)))
        return
    rows = evaluate.evaluate_all(runs, data, out or "runs/table1", **chosen)
    print(tables.table1(rows))


def _report(arguments: list[str]) -> None:
    parser = _parser("report", "One HTML page of one or several runs: tables, pictures, curves, settings.")
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str, help="HTML to write; report.html in the first run unless told")
    print(f"{page.report(**_without_config(parser.parse_args(arguments)))}: written")


def _calibrate(arguments: list[str]) -> None:
    parser = _parser("calibrate", "Scale a student's intervals to the ground truth of images like yours.")
    parser.add_argument("run", type=str, help="folder of a run whose loss is Quantiles or MeanVariance")
    parser.add_argument("noisy", type=str, help="noisy TIFF, not trained on")
    parser.add_argument("clean", type=str, help="TIFF with the ground truth, one frame or as many")
    for name in ("test_noisy", "test_clean"):
        parser.add_argument(f"--{name}", type=str, help="TIFF to report the coverage of")
    parser.add_function_arguments(
        calibration.calibrate, skip={"run", "noisy", "clean", "test_noisy", "test_clean"}
    )
    chosen = parser.parse_args(arguments)
    found = calibration.calibrate(**_without_config(chosen))
    print(f"{chosen.run}: intervals scaled by {found.factor:.3g}; {found.level:.0%} wanted, "
          f"{found.before:.1%} of the true pixels inside before, {found.after:.1%} now")  # fmt: skip


def _export(arguments: list[str]) -> None:
    parser = _parser("export", "Write a run's student as a file that other programs open.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_function_arguments(export.export, skip={"run"})
    chosen = parser.parse_args(arguments)
    print(f"{export.export(**_without_config(chosen))}: written, gives what the student gives")


def _cache(arguments: list[str]) -> None:
    parser = _parser("cache", "Write a sampler's draws to disk, for training students without running it.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, help="noisy TIFF, the one to train on")
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    parser.add_function_arguments(cache.cache_draws, skip={"run", "images", "out"})
    chosen = parser.parse_args(arguments)
    cache.cache_draws(**_without_config(chosen))
    print(f"{chosen.out}: done. Now: distill train {chosen.images} --sampler CachedDraws "
          f"--sampler.path {chosen.out} --out runs/student")  # fmt: skip


def _noise_model(arguments: list[str]) -> None:
    if arguments[:1] not in (["fit"], ["-h"], ["--help"]):
        raise UserError("noise-model: allowed is `distill noise-model fit`; try it with --help")
    parser = _parser("noise-model fit", "Fit p(noisy | signal) to frames, and judge it on held-out pixels.")
    parser.add_argument("images", type=str, help="TIFF: frames of a static scene, or any noisy stack")
    parser.add_argument("--out", type=str, required=True, help="noise model to write (.npz), plot beside it")
    parser.add_function_arguments(fit.fit_noise_model, skip={"images", "out"})
    chosen = parser.parse_args([a for a in arguments if a != "fit"])
    fit.fit_noise_model(**_without_config(chosen))


def _info(arguments: list[str]) -> None:
    parser = _parser("info", "What is in a run or an image.")
    parser.add_argument("path", type=str, help="folder of a run, or a TIFF")
    path = Path(parser.parse_args(arguments).path)
    print(describe_run(path) if path.is_dir() else describe_image(path))


def _without_config(chosen: jsonargparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(chosen).items() if k != "config"}


def _public_classes(package: Any, base: type) -> list[str]:
    """The classes that a package exports for a role."""
    exported = [(name, getattr(package, name)) for name in package.__all__]
    return [
        name
        for name, value in exported
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]


def _full_name(arguments: list[str], i: int) -> str:
    """`--loss L1` means losses.L1, and `--loss '1*L1 + 0.1*LPIPS'` their weighted sum."""
    before, name = (arguments[i - 1] if i else ""), arguments[i]
    flag, equals, value = name.partition("=")
    if equals and flag.removeprefix("--") in ROLES:
        before, name = flag, value
    role = before.removeprefix("--").removesuffix(".help")
    if not before.startswith("--") or role not in ROLES or name.startswith(("-", "{")):
        return arguments[i]
    is_sum = role == "loss" and any(sign in name for sign in "+*")
    return (flag + "=" if equals else "") + (_weighted_sum(name) if is_sum else _class_path(role, name))


def _class_path(role: str, name: str) -> str:
    """A name that is neither ours nor dotted is an error that lists ours."""
    package, base, _ = ROLES[role]
    ours = _public_classes(package, base)
    if "." in name:
        return name
    if name not in ours:
        raise UserError(f"{role}: got '{name}', allowed are {', '.join(ours)} or a dotted path of your own")
    return f"{package.__name__}.{name}"


def _weighted_sum(text: str) -> str:
    terms = [term.rpartition("*") for term in text.split("+")]
    try:
        weights = [float(weight or 1) for weight, _, _ in terms]
    except ValueError:
        raise UserError(f"loss: got '{text}', allowed is a sum such as '1*L1 + 0.1*LPIPS'") from None
    summed = [{"class_path": _class_path("loss", name.strip())} for _, _, name in terms]
    return json.dumps(
        {"class_path": "losses.WeightedSum", "init_args": {"losses": summed, "weights": weights}}
    )
