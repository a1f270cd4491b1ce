"""Command-line arguments from the signatures of train, predict, evaluate; class names or dotted paths
for sampler, student and loss.

Why not jsonargparse's auto_cli: what a run or an image may be in Python (arrays, networks) would have to
be narrowed in a second signature of every function, and those would be longer than the parsers here.
"""

import inspect
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import nn

import losses
import samplers
import students
from distill import denoising
from distill.errors import UserError, checks_of
from distill.evaluation import calibration, evaluate, tables
from distill.evaluation.verdict import read_table, summary, verdict
from distill.exporting import export, hub
from distill.images.context import plane_count
from distill.images.describe import describe_image
from distill.images.sources import as_stack, holds_images
from distill.limits import check_limits
from distill.noise_fitting import fit
from distill.options import Parser, values
from distill.prediction import cache, predict
from distill.reporting import page
from distill.runs import published, rebuild, tensors
from distill.runs.checkpoint import has_student
from distill.runs.describe import describe_run, is_finished
from distill.training import cost, engine
from distill.training.checks import check_seen
from distill.training.processes import is_main, joined

ROLES = {
    "sampler": (samplers, samplers.PosteriorSampler, "StabilizedSampler"),
    "student": (students, nn.Module, "StabilizedUNet"),
    "loss": (losses, losses.Loss, "L2"),
}


DRAWS = "numbers of draws to average"
ONE = "TIFF, OME-Zarr or .npy, or a folder or 'glob' of such"
MAPS = "what the networks see beside the images, such as a mask: one frame or as many"
NOISY = "noisy images in raw counts: TIFF, OME-Zarr, .npy"


def run(command: str, arguments: list[str]) -> None:
    if _names_code(arguments):
        sys.path.append("")  # which may lie in the working folder
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


def _names_code(arguments: list[str]) -> bool:
    """Whether users name modules of their own: trusted ones, classes by dotted paths, or a file with such."""
    words = [*arguments, ""]
    pairs = [(a, b) for a, b in pairwise(words)] + [tuple(a.split("=", 1)) for a in words if "=" in a]
    roles = tuple(f"--{role}" for role in ROLES)
    return any(
        flag in ("--trust", "--config") or (flag.startswith(roles) and "." in value) for flag, value in pairs
    )


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"distill {command}", description=description)
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML with any of these options")
    return parser


def _add_options(parser: Parser, function: Callable[..., Any], skip: tuple[str, ...] = ()) -> None:
    """A function's parameters that the parser does not have already, with the texts of its docstring."""
    if "conditions" in inspect.signature(function).parameters:
        parser.add_argument("--conditions", type=str, metavar="FILE", help=MAPS)
    there = {action.dest for action in parser._actions}
    parser.add_function_arguments(function, skip={*there, *skip}, as_group=False)


def _denoise(arguments: list[str]) -> None:
    parser = _parser("denoise", "Train on noisy images, denoise them, and say in words how it went.")
    parser.add_argument("noisy", type=str, nargs="+", help=NOISY)
    parser.add_argument("--out", type=str, required=True, help="image to write: .tif, .ome.tif or .ome.zarr")
    parser.add_argument("--trained", "--with", type=str, metavar="RUN",
                        help="finished run, or a .zip that `distill export --format bioimageio` wrote, that "
                        "denoises the images without any training; or pretrained, the shipped weights "
                        "(default: train)")  # fmt: skip
    _add_options(parser, denoising.denoise, skip=("draws", "statistic", "seed", "dask", "conditions"))
    chosen = _without_config(parser.parse_args(arguments))
    run, out = denoising.denoise(**chosen), chosen["out"]
    other = f"other_clean{Path(out).name.removeprefix(denoising.run_beside(out).stem)}"
    print("\n".join(summary(run.path)))
    print(f"{out}: written. Look at {run.path / 'report.html'}. For the next images: "
          f"distill denoise other.tif --out {other} --with {run.path}")  # fmt: skip


@joined()
def _train(arguments: list[str]) -> None:
    parser = _parser("train", "Co-train a posterior sampler and its one-pass student on noisy images.")
    parser.add_argument("images", type=str, nargs="+", help=NOISY)
    for role, (package, base, default) in ROLES.items():
        names = ", ".join(_public_classes(package, base))
        parser.add_argument(
            f"--{role}",
            type=base,
            default=_default(role, arguments),
            metavar="NAME",
            help=f"{names}, or a dotted path of your own"
            + (", or a sum such as '1*L1 + 0.1*LPIPS'" if role == "loss" else "")
            + f"; its options are --{role}.OPTION, listed by --{role}.help NAME (default: {default})",
        )
    parser.add_argument("--init", "--from", type=str, metavar="RUN", default="pretrained",
                        help="weights to start from: pretrained (those in the package, for networks that "
                        "have some), none, or a finished run, for instance of other images")  # fmt: skip
    parser.add_argument("--trust", type=str | Sequence[str], metavar="MODULE", default=(),
                        help="your modules whose classes the run of --init may name")  # fmt: skip
    _add_options(parser, engine.train, skip=("on_log",))
    arguments = [_full_name(arguments, i) for i in range(len(arguments))]
    config = parser.parse_args(arguments)
    check_limits(vars(config))
    torch.manual_seed(config.seed)  # of the networks' initial weights
    with checks_of():  # the constructors' own
        chosen = parser.instantiate(config)
        check_seen(config.context, _maps(config), chosen.sampler, chosen.student)
        if _set_channels(config, chosen.sampler, len(chosen.loss.outputs)):
            chosen = parser.instantiate(config)
    options = _without_config(chosen)
    del options["trust"]  # `_default` has used it
    finished = engine.train(**options)
    if is_main():
        images = _words(config.images)
        told = "" if config.conditions is None else f" --conditions {shlex.quote(config.conditions)}"
        print(f"{finished.path}: done. Now: distill predict {finished.path} {images}{told} --out clean.tif")


def _default(role: str, arguments: list[str]) -> dict[str, Any] | None:
    """HDN is the light one, which a CPU trains in minutes. A class that is named keeps its own defaults:
    those of another class would be carried over to arguments of the same name."""
    package, _, default = ROLES[role]
    name = (values(arguments, f"--{role}") or [""])[-1].removeprefix(f"{package.__name__}.")
    first_run = [run for flag in ("--init", "--from") for run in values(arguments, flag)]
    trust = values(arguments, "--trust")
    if first_run and not name and (described := _described(Path(first_run[-1]), role, trust)):
        return described
    if role == "sampler" and name == "HDN":
        return {"class_path": "samplers.HDN", "init_args": dict(samplers.LIGHT)}
    return {"class_path": f"{package.__name__}.{default}"} if name in ("", default) else None


def _described(run: Path, role: str, trust: list[str]) -> dict[str, Any] | None:
    """The network of a finished run, for one that starts from its weights. Without what names files, as of
    its noise: that of the new images is estimated anew."""
    file, key = {"sampler": ("sampler", "sampler"), "student": ("student", "backbone")}.get(role, ("", ""))
    path = run / f"{file}.safetensors"
    if not path.exists() or (network := tensors.load(path, {key: dict | None})[1][key]) is None:
        return None
    try:
        rebuild.check(network, trust)
        kind = rebuild.class_of(network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    parameters, files = inspect.signature(kind, eval_str=True).parameters, rebuild.files_of(kind)
    options = {k: v for k, v in network["arguments"].items() if k not in files}
    for name, value in options.items():
        is_text = name in parameters and parameters[name].annotation in (str, str | None)
        if isinstance(value, list) and all(isinstance(each, int | float) for each in value):
            continue
        if isinstance(value, dict | list) or (isinstance(value, str) and not is_text):
            return None  # made of other networks; jsonargparse would import what a text names
    return {"class_path": network["class"], "init_args": options}


def _set_channels(config: jsonargparse.Namespace, sampler: samplers.PosteriorSampler, outputs: int) -> bool:
    """Networks made for 1 channel and scale 1, as they are unless told, take the image's channels and give
    those of the sampler's draws and the loss, as large as the draws; a student takes the sampler's dims. True
    where that changed anything."""
    channels, changed = as_stack(config.images, config.axes).frames.shape[1], False
    seen = channels * plane_count(config.context) + _maps(config)
    drawn = (sampler.out_channels or channels) * outputs
    scale = 1 if sampler.scale in (1, (1, 1), [1, 1]) else sampler.scale
    for role, needed in {
        "sampler": {"channels": channels} | ({"in_channels": seen} if seen != channels else {}),
        "student": {"in_channels": seen, "out_channels": drawn, "scale": scale},
    }.items():
        arguments = config[role].get("init_args") or {}
        for name, value in needed.items():
            if arguments.get(name, value) in (None, 1) and value != 1:
                arguments[name], changed = value, True
    student = config.student.get("init_args") or {}
    if student.get("dims", sampler.dims) == 2 and sampler.dims != 2:
        student["dims"], changed = sampler.dims, True
    return changed


def _maps(config: jsonargparse.Namespace) -> int:
    """How many the networks are told beside the images."""
    return 0 if config.conditions is None else as_stack(config.conditions).frames.shape[1]


def _predict(arguments: list[str]) -> None:
    parser = _parser("predict", "Denoise images with a run's student, or average its sampler's draws.")
    parser.add_argument("run", type=str, help="folder of a run; or a .zip that `distill export --format "
                        "bioimageio` wrote; or pretrained, the shipped weights, for a first answer before "
                        "any training; --with RUN says the same")  # fmt: skip
    parser.add_argument("noisy", type=str, nargs="+", help=NOISY)
    parser.add_argument("--out", type=str, required=True, help="image to write: .tif, .ome.tif or .ome.zarr")
    _add_options(parser, predict.predict)
    arguments = [each for word in arguments for each in _split_with(word)]
    if "--with" in arguments[:-1]:
        at = arguments.index("--with")
        arguments = [arguments[at + 1], *arguments[:at], *arguments[at + 2 :]]
    chosen = parser.parse_args(arguments)
    predict.predict(**_without_config(chosen))
    print(f"{chosen.out}: written")


def _split_with(word: str) -> list[str]:
    return ["--with", word.removeprefix("--with=")] if word.startswith("--with=") else [word]


def _evaluate(arguments: list[str]) -> None:
    parser = _parser("evaluate", "Compare draws and student by PSNR, SSIM, time and memory; without ground "
                     "truth, by what the residuals tell.")  # fmt: skip
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("noisy", type=str, help=f"noisy {ONE}, in raw counts")
    parser.add_argument("clean", type=str, nargs="?", help="the ground truth likewise, one frame or as many")
    parser.add_argument("--out", type=str, help="folder to write to (default: that of the run)")
    parser.add_argument("--draws", type=int, nargs="*", default=[1, 10, 100], help=f"{DRAWS}, or none")
    parser.add_argument("--cost", type=bool, default=False,
                        help="measure also what the student adds to the training, into cost.txt")  # fmt: skip
    _add_options(parser, evaluate.evaluate)
    chosen = _without_config(parser.parse_args(arguments))
    with_cost = chosen.pop("cost")
    evaluate.evaluate(**chosen)
    folder = Path(chosen["out"] or chosen["run"])
    if sentence := verdict(read_table(folder / "evaluation.csv")):
        print(f"{sentence}\n")
    print((folder / "evaluation.md").read_text(encoding="utf-8"), end="")
    if with_cost:
        machine = {key: chosen[key] for key in ("device", "precision", "axes", "conditions")}
        print(cost.training_cost(chosen["run"], chosen["noisy"], **machine))


def _table1(arguments: list[str]) -> None:
    parser = _parser("table1", "Several runs on several data sets, as the paper's Table 1.")
    parser.add_argument("--run", dest="runs", type=str, action="append", required=True, metavar="RUN",
                        help="folder of a run; once for each")  # fmt: skip
    parser.add_argument("--data", type=str, nargs=2, action="append", required=True,
                        metavar=("NOISY", "CLEAN"),
                        help=f"noisy {ONE} and its ground truth; once for each pair")  # fmt: skip
    parser.add_argument("--out", type=str, default="runs/table1", help="folder to write to")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 10, 100], help=DRAWS)
    _add_options(parser, evaluate.evaluate, skip=("run", "noisy", "clean"))
    rows = evaluate.evaluate_all(**_without_config(parser.parse_args(arguments)))
    print(tables.table1(rows))


def _report(arguments: list[str]) -> None:
    parser = _parser("report", "One HTML page of one or several runs: tables, pictures, curves, settings.")
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str, help="HTML to write (default: report.html in the first run)")
    _add_options(parser, page.report)
    print(f"{page.report(**_without_config(parser.parse_args(arguments)))}: written")


def _calibrate(arguments: list[str]) -> None:
    parser = _parser("calibrate", "Scale a student's intervals to the ground truth of images like yours.")
    parser.add_argument("run", type=str, help="folder of a run whose loss is Quantiles or MeanVariance")
    parser.add_argument("noisy", type=str, help=f"noisy {ONE}, not trained on")
    parser.add_argument("clean", type=str, help="the ground truth likewise, one frame or as many")
    for name, kind in {"test_noisy": "noisy images", "test_clean": "its ground truth"}.items():
        parser.add_argument(
            f"--{name}", type=str, help=f"{kind}, to report the coverage of (default: the same)"
        )
    _add_options(parser, calibration.calibrate)
    chosen = parser.parse_args(arguments)
    result = calibration.calibrate(**_without_config(chosen))
    print(f"{chosen.run}: intervals scaled by {result.factor:.3g}; {result.level:.0%} wanted, "
          f"{result.before:.1%} of the true pixels inside before, {result.after:.1%} now"
          + f"; {result.left_out} pixels without truth left out" * bool(result.left_out))  # fmt: skip


def _export(arguments: list[str]) -> None:
    parser = _parser("export", "Write a run's student as a file that other programs open.")
    parser.add_argument("run", type=str, help="folder of a run")
    _add_options(parser, export.export)
    chosen = parser.parse_args(arguments)
    print(f"{export.export(**_without_config(chosen))}: written, gives what the student gives")


def _cache(arguments: list[str]) -> None:
    parser = _parser("cache", "Write a sampler's draws to disk, for training students without running it.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, nargs="+", help=f"{NOISY}; those to train on")
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    _add_options(parser, cache.cache_draws)
    chosen = parser.parse_args(arguments)
    cache.cache_draws(**_without_config(chosen))
    told = "" if chosen.conditions is None else f"--conditions {shlex.quote(chosen.conditions)} "
    print(f"{chosen.out}: done. Now: distill train {_words(chosen.images)} {told}--sampler CachedDraws "
          f"--sampler.path {chosen.out} --out runs/student")  # fmt: skip


def _noise_model(arguments: list[str]) -> None:
    if arguments[:1] not in (["fit"], ["-h"], ["--help"]):
        raise UserError("noise-model: allowed is `distill noise-model fit`; try it with --help")
    parser = _parser("noise-model fit", "Fit p(noisy | signal) to frames, and judge it on held-out pixels.")
    parser.add_argument("images", type=str, nargs="+",
                        help="TIFF, OME-Zarr, .npy: of a static scene, or any noisy stack")  # fmt: skip
    parser.add_argument("--out", type=str, required=True, help="noise model to write (.npz), plot beside it")
    parser.add_argument("--signal", type=str, help="a denoised version of the images, for bootstrap")
    parser.add_argument(
        "--data", type=str, help="noisy images that the model is meant for, to compare their range"
    )
    _add_options(parser, fit.fit_noise_model)
    chosen = parser.parse_args([a for a in arguments if a != "fit"])
    fit.fit_noise_model(**_without_config(chosen))


def _import(arguments: list[str]) -> None:
    parser = _parser("import", "A published HDN, HDN3-6 or Direct Denoiser as a run, without its code.")
    parser.add_argument("checkpoint", type=str, help=".ckpt of the Direct Denoiser, or _vae.net of HDN")
    parser.add_argument("--out", type=str, required=True, help="folder to write the run to")
    _add_options(parser, published.import_published)
    run = published.import_published(**_without_config(parser.parse_args(arguments)))
    how = "" if has_student(run) else " --draws 100"
    print(f"{run}: written. Now: distill predict {run} IMAGES{how} --out clean.tif")


def _push(arguments: list[str]) -> None:
    parser = _parser("push", "Share a run as a Hugging Face repository, with a model card.")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("repo", type=str, help="NAME/REPO; made if there is none")
    _add_options(parser, hub.push)
    chosen = parser.parse_args(arguments)
    address = hub.push(**_without_config(chosen))
    print(f"{address}: sent. Others fetch it by: distill pull {chosen.repo} --out runs/NAME")


def _pull(arguments: list[str]) -> None:
    parser = _parser("pull", "Fetch a run that `distill push` has shared, and check it.")
    parser.add_argument("repo", type=str, help="NAME/REPO")
    parser.add_argument("--out", type=str, required=True, help="folder to write, which is not there yet")
    _add_options(parser, hub.pull)
    run = hub.pull(**_without_config(parser.parse_args(arguments)))
    how = "" if has_student(run) else " --draws 100"
    print(f"{run}: written. Now: distill predict {run} IMAGES{how} --out clean.tif")


def _info(arguments: list[str]) -> None:
    parser = _parser("info", "What is in a run or an image.")
    parser.add_argument("path", type=str, nargs="+", help=f"folder of a run, or {ONE}")
    paths = parser.parse_args(arguments).path
    folder = Path(paths[0]) if len(paths) == 1 else None
    is_run = folder and folder.is_dir() and (is_finished(folder) or not holds_images(paths[0]))
    print(describe_run(folder) if folder and is_run else describe_image(paths))


def _words(paths: list[str]) -> str:
    """As they are typed in a shell."""
    return " ".join(shlex.quote(path) for path in paths)


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
