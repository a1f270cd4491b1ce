"""The commands: their options come from the signatures and docstrings of the functions that they call.

Samplers, students and losses are class names or dotted paths. jsonargparse's auto_cli is not used, because a
run or an image may be an array or a network in Python, so every function would need a second signature for
the command line, which would be longer than the parsers here.
"""

import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from distill import denoising
from distill.errors import UserError, checks_of
from distill.evaluation import calibration, evaluate, tables
from distill.evaluation.verdict import read_table, summary, verdict
from distill.exporting import export, hub
from distill.images.describe import describe_image
from distill.images.sources import holds_images
from distill.limits import check_limits
from distill.noise_fitting import fit
from distill.options import Parser
from distill.prediction import cache, predict
from distill.reporting import page
from distill.roles import add_roles, count_conditions, full_names, names_code, set_channels
from distill.runs import published
from distill.runs.checkpoint import has_student
from distill.runs.describe import describe_run, is_finished
from distill.training import cost, engine
from distill.training.checks import check_seen
from distill.training.processes import is_main, joined

DRAWS = "numbers of draws to average"
ONE = "TIFF, OME-Zarr or .npy, or a folder or 'glob' of such files"
MAPS = "further input of the networks, such as a mask: one frame for all images, or one for each"
CLEAN = "ground truth, in the same formats: one frame for all noisy frames, or one for each"
NOISY = "noisy images in raw counts: TIFF, OME-Zarr, .npy"


def run(command: str, arguments: list[str]) -> None:
    if names_code(arguments):
        sys.path.append("")  # the modules may be in the working folder
    commands = {
        "denoise": _denoise,
        "train": _train,
        "predict": _predict,
        "evaluate": _evaluate,
        "table1": _table1,
    }
    commands |= {"report": _report, "export": _export, "cache": _cache, "noise-model": _noise_model}
    commands |= {"info": _info, "calibrate": _calibrate, "import": _import, "push": _push, "pull": _pull}
    commands[command](arguments)


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"distill {command}", description=description)
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file with any of these options"
    )
    return parser


def _add_options(parser: Parser, function: Callable[..., Any], skip: tuple[str, ...] = ()) -> None:
    """Adds the function's parameters that the parser does not have yet, with the texts of its docstring."""
    if "conditions" in inspect.signature(function).parameters:
        parser.add_argument("--conditions", type=str, metavar="FILE", help=MAPS)
    present = {action.dest for action in parser._actions}
    parser.add_function_arguments(function, skip={*present, *skip}, as_group=False)


def _denoise(arguments: list[str]) -> None:
    parser = _parser("denoise", "Train on noisy images, denoise them, and check the result.")
    parser.add_argument("noisy", type=str, nargs="+", help=NOISY)
    parser.add_argument("--out", type=str, required=True, help="image to write: .tif, .ome.tif or .ome.zarr")
    parser.add_argument("--trained", "--with", type=str, metavar="RUN",
                        help="denoise with this trained network instead of training: a finished run, a .zip "
                        "of `distill export --format bioimageio`, or pretrained, the weights in the package "
                        "(default: train)")  # fmt: skip
    _add_options(parser, denoising.denoise, skip=("draws", "statistic", "seed", "conditions"))
    options = _without_config(parser.parse_args(arguments))
    run, out = denoising.denoise(**options), options["out"]
    other = f"other_clean{Path(out).name.removeprefix(denoising.run_beside(out).stem)}"
    print("\n".join(summary(run.path)))
    other, trained = shlex.quote(other), shlex.quote(str(run.path))
    print(f"{out}: written. Look at {run.path / 'report.html'}. For the next images: "
          f"distill denoise other.tif --out {other} --with {trained}")  # fmt: skip


@joined()
def _train(arguments: list[str]) -> None:
    parser = _parser("train", "Train a posterior sampler and a one-pass student together on noisy images.")
    parser.add_argument("images", type=str, nargs="+", help=NOISY)
    add_roles(parser, arguments)
    parser.add_argument("--init", "--from", type=str, metavar="RUN", default="pretrained",
                        help="initial weights: pretrained (those in the package, for networks that have "
                        "some), none, or a finished run, for instance of other images")  # fmt: skip
    parser.add_argument("--trust", type=str | Sequence[str], metavar="MODULE", default=(),
                        help="your modules that the run of --init may import")  # fmt: skip
    _add_options(parser, engine.train, skip=("on_log",))
    config = parser.parse_args(full_names(arguments))
    check_limits(vars(config))
    torch.manual_seed(config.seed)  # for the initial weights of the networks
    with checks_of():  # errors of the constructors
        objects = parser.instantiate(config)
        check_seen(config.context, count_conditions(config), objects.sampler, objects.student)
        if set_channels(config, objects.sampler, len(objects.loss.outputs)):
            objects = parser.instantiate(config)
    options = _without_config(objects)
    del options["trust"]  # only `add_roles` needs it
    finished = engine.train(**options)
    if is_main():
        images = _words(config.images)
        maps = "" if config.conditions is None else f" --conditions {shlex.quote(config.conditions)}"
        run = shlex.quote(str(finished.path))
        print(f"{finished.path}: done. Now: distill predict {run} {images}{maps} --out clean.tif")


def _predict(arguments: list[str]) -> None:
    parser = _parser("predict", "Denoise images with a run's student, or average its sampler's draws.")
    parser.add_argument("run", type=str, help="folder of a run, a .zip of `distill export --format "
                        "bioimageio`, or pretrained, the weights in the package, for a first result before "
                        "any training; may also be passed as --with RUN")  # fmt: skip
    parser.add_argument("noisy", type=str, nargs="+", help=NOISY)
    parser.add_argument("--out", type=str, required=True, help="image to write: .tif, .ome.tif or .ome.zarr")
    _add_options(parser, predict.predict)
    arguments = [each for word in arguments for each in _split_with(word)]
    if "--with" in arguments[:-1]:
        at = arguments.index("--with")
        arguments = [arguments[at + 1], *arguments[:at], *arguments[at + 2 :]]
    config = parser.parse_args(arguments)
    predict.predict(**_without_config(config))
    print(f"{config.out}: written")


def _split_with(word: str) -> list[str]:
    return ["--with", word.removeprefix("--with=")] if word.startswith("--with=") else [word]


def _evaluate(arguments: list[str]) -> None:
    parser = _parser("evaluate", "Compare draws and student by PSNR, SSIM, time and memory, or by their "
                     "residuals if there is no ground truth.")  # fmt: skip
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("noisy", type=str, help=f"noisy {ONE}, in raw counts")
    parser.add_argument("clean", type=str, nargs="?", help=CLEAN)
    parser.add_argument("--out", type=str, help="folder to write to (default: that of the run)")
    parser.add_argument("--draws", type=int, nargs="*", default=[1, 10, 100], help=f"{DRAWS}, or none")
    parser.add_argument("--cost", type=bool, default=False,
                        help="also measure the training cost of the student and write cost.txt")  # fmt: skip
    _add_options(parser, evaluate.evaluate)
    options = _without_config(parser.parse_args(arguments))
    with_cost = options.pop("cost")
    evaluate.evaluate(**options)
    folder = Path(options["out"] or options["run"])
    if sentence := verdict(read_table(folder / "evaluation.csv")):
        print(f"{sentence}\n")
    print((folder / "evaluation.md").read_text(encoding="utf-8"), end="")
    if with_cost:
        common = {key: options[key] for key in ("device", "precision", "axes", "conditions")}
        print(cost.training_cost(options["run"], options["noisy"], **common))


def _table1(arguments: list[str]) -> None:
    parser = _parser("table1", "Evaluate several runs on several data sets, as in Table 1 of the paper.")
    parser.add_argument("--run", dest="runs", type=str, action="append", required=True, metavar="RUN",
                        help="folder of a run; repeat for each run")  # fmt: skip
    parser.add_argument("--data", type=str, nargs=2, action="append", required=True,
                        metavar=("NOISY", "CLEAN"),
                        help=f"noisy {ONE} and its ground truth; repeat for each pair")  # fmt: skip
    parser.add_argument("--out", type=str, default="runs/table1", help="folder to write to")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100], help=DRAWS)
    _add_options(parser, evaluate.evaluate, skip=("run", "noisy", "clean"))
    rows = evaluate.evaluate_all(**_without_config(parser.parse_args(arguments)))
    print(tables.table1(rows))


def _report(arguments: list[str]) -> None:
    parser = _parser(
        "report", "Write an HTML page about one or several runs: tables, pictures, curves, settings."
    )
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str, help="HTML file to write (default: report.html in the first run)")
    _add_options(parser, page.report)
    print(f"{page.report(**_without_config(parser.parse_args(arguments)))}: written")


def _calibrate(arguments: list[str]) -> None:
    parser = _parser(
        "calibrate",
        "Scale a student's intervals so that they contain the ground truth as often as they state.",
    )
    parser.add_argument("run", type=str, help="folder of a run whose loss is Quantiles or MeanVariance")
    parser.add_argument("noisy", type=str, help=f"noisy {ONE}, not used in training")
    parser.add_argument("clean", type=str, help=CLEAN)
    for name, kind in {"test_noisy": "noisy images", "test_clean": "their ground truth"}.items():
        parser.add_argument(
            f"--{name}", type=str, help=f"{kind}, to measure the coverage (default: the same)"
        )
    _add_options(parser, calibration.calibrate)
    config = parser.parse_args(arguments)
    result = calibration.calibrate(**_without_config(config))
    print(f"{config.run}: scaled the intervals by {result.factor:.3g}; they state {result.level:.0%} and "
          f"contained {result.before:.1%} of the true pixels before, {result.after:.1%} now"
          + f"; {result.left_out} pixels without ground truth ignored" * bool(result.left_out))  # fmt: skip


def _export(arguments: list[str]) -> None:
    parser = _parser("export", "Export a run's student as a file for other programs.")
    parser.add_argument("run", type=str, help="folder of a run")
    _add_options(parser, export.export)
    path = export.export(**_without_config(parser.parse_args(arguments)))
    print(f"{path}: written, and checked to give the same results as the student")


def _cache(arguments: list[str]) -> None:
    parser = _parser(
        "cache", "Write a sampler's draws to disk, to train students without running the sampler."
    )
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, nargs="+", help=f"{NOISY}; the images to train on")
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    _add_options(parser, cache.cache_draws)
    config = parser.parse_args(arguments)
    cache.cache_draws(**_without_config(config))
    maps = "" if config.conditions is None else f"--conditions {shlex.quote(config.conditions)} "
    print(f"{config.out}: done. Now: distill train {_words(config.images)} {maps}--sampler CachedDraws "
          f"--sampler.path {config.out} --out runs/student")  # fmt: skip


def _noise_model(arguments: list[str]) -> None:
    if arguments[:1] not in (["fit"], ["-h"], ["--help"]):
        raise UserError("noise-model: the only subcommand is fit; try distill noise-model fit --help")
    parser = _parser(
        "noise-model fit", "Fit a noise model p(noisy | signal) to images and check it on held-out pixels."
    )
    parser.add_argument("images", type=str, nargs="+",
                        help="frames of a static scene or a noisy stack: TIFF, OME-Zarr, .npy")  # fmt: skip
    parser.add_argument(
        "--out", type=str, required=True, help="noise model to write (.npz), with a plot beside it"
    )
    parser.add_argument("--signal", type=str, help="denoised version of the images, for bootstrap")
    parser.add_argument(
        "--data", type=str, help="noisy images to denoise with the model, to compare their range"
    )
    _add_options(parser, fit.fit_noise_model)
    fit.fit_noise_model(**_without_config(parser.parse_args([a for a in arguments if a != "fit"])))


def _import(arguments: list[str]) -> None:
    parser = _parser(
        "import", "Import a published HDN, HDN3-6 or Direct Denoiser as a run, without its code."
    )
    parser.add_argument("checkpoint", type=str, help=".ckpt of the Direct Denoiser, or _vae.net of HDN")
    parser.add_argument("--out", type=str, required=True, help="folder to write the run to")
    _add_options(parser, published.import_published)
    _print_next_step(published.import_published(**_without_config(parser.parse_args(arguments))))


def _print_next_step(run: Any) -> None:
    how = "" if has_student(run) else " --draws 100"
    print(f"{run}: written. Now: distill predict {run} IMAGES{how} --out clean.tif")


def _push(arguments: list[str]) -> None:
    parser = _parser("push", "Share a run as a Hugging Face repository, with a model card.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("repo", type=str, help="NAME/REPO; created if it does not exist")
    _add_options(parser, hub.push)
    config = parser.parse_args(arguments)
    address = hub.push(**_without_config(config))
    print(f"{address}: uploaded. Others can fetch it with: distill pull {config.repo} --out runs/NAME")


def _pull(arguments: list[str]) -> None:
    parser = _parser("pull", "Fetch a run that was shared with `distill push`, and check it.")
    parser.add_argument("repo", type=str, help="NAME/REPO")
    parser.add_argument("--out", type=str, required=True, help="folder to write, which must not exist yet")
    _add_options(parser, hub.pull)
    _print_next_step(hub.pull(**_without_config(parser.parse_args(arguments))))


def _info(arguments: list[str]) -> None:
    parser = _parser("info", "Describe a run or an image.")
    parser.add_argument("path", type=str, nargs="+", help=f"folder of a run, or {ONE}")
    paths = parser.parse_args(arguments).path
    folder = Path(paths[0]) if len(paths) == 1 else None
    is_run = folder and folder.is_dir() and (is_finished(folder) or not holds_images(paths[0]))
    print(describe_run(folder) if folder and is_run else describe_image(paths))


def _words(paths: list[str]) -> str:
    """The paths as words of a shell command."""
    return " ".join(shlex.quote(path) for path in paths)


def _without_config(config: jsonargparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(config).items() if k != "config"}
