"""Tries about 900 bad inputs of all commands: each must print one line, exit with 2 and change nothing.

    python benchmarks/bad_inputs.py            # all, in about ten minutes
    python benchmarks/bad_inputs.py predict    # those of one command

Each input runs in its own child process, which is stopped after LIMIT seconds. A full disk and a read-only
folder are tested if this machine allows mounting, which needs root.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

import distill.cli  # noqa: F401  # once for all children
from distill.__main__ import main

LIMIT = 8  # s
BAR = re.compile(r"\d+%\|.*\|")  # of progress, which is no message
QUICK = [
    "--sampler", "HDN", "--sampler.levels", "2", "--sampler.latents", "2", "--sampler.filters", "4",
    "--sampler.blocks", "1", "--student", "UNet", "--student.depth", "2", "--student.filters", "4",
    "--steps", "2", "--refine_steps", "1", "--batch_size", "2", "--micro_batch", "2", "--patch_size", "16",
    "--device", "cpu",
]  # fmt: skip
BASE = {  # commands that work
    "train": ["noisy.tif", "--out", "new", *QUICK],
    "predict": ["run", "noisy.tif", "--out", "new.tif"],
    "evaluate": ["run", "noisy.tif", "clean.tif", "--draws", "1", "--out", "new"],
    "table1": ["--run", "run", "--data", "noisy.tif", "clean.tif", "--draws", "1", "--out", "new"],
    "report": ["run", "--out", "new.html"],
    "calibrate": ["run", "noisy.tif", "clean.tif"],
    "export": ["run", "--out", "new.onnx"],
    "cache": ["run", "noisy.tif", "--out", "new", "--draws", "2"],
    "noise-model": ["fit", "noisy.tif", "--out", "new.npz"],
    "info": ["run"],
}

# What no argument of a kind may be.
WORD = ["", "nonsense"]
WHOLE = ["-1", "-1000000", "nan", "1.5", "many", "", "[1]"]
COUNT = ["0", *WHOLE]
REAL = ["-1", "nan", "inf", "-inf", "many", ""]
POSITIVE = ["0", *REAL]
NOT_FILES = ["", "missing.tif", "folder", "pipe", "/dev/zero", "empty", "text", "noise", "secret.tif"]
IMAGES = [*NOT_FILES, "rgb.tif", "nan.tif", "huge.tif", "complex.tif", "run/student.safetensors", "two.tif",
          "small.tif"]  # fmt: skip
TRUTHS = [*NOT_FILES, "rgb.tif", "huge.tif", "complex.tif", "two.tif", "small.tif"]
RUNS = ["", "missing", "folder", "pipe", "/dev/zero", "text", "noise", "noisy.tif", "halves/no_sampler",
        "halves/no_student", "halves/other", "halves/torn", "halves/pipe"]  # fmt: skip
CONFIGS = ["", "missing.yaml", "folder", "pipe", "/dev/zero", "empty", "noise", "bomb.yaml", "deep.yaml",
           "list.yaml", "loop.yaml", "tab.yaml", "unknown.yaml", "nul.yaml"]  # fmt: skip
FILES = ["", "folder", "pipe", "missing/new", "text/new", "new.nonsense", "x" * 300, "/proc/new"]
FOLDERS = ["", "text", "pipe", "text/new", "x" * 300, "/proc/new"]
COMMON = {"device": [*WORD, "cuda:99", "cpu:-1"], "precision": [*WORD, "fp16"],
          "axes": ["", "Q", "YX", "YYX", "TYXC", "123"], "config": CONFIGS}  # fmt: skip
OPTIONS = {
    "train": COMMON | {
        "steps": WHOLE, "refine_steps": WHOLE, "batch_size": COUNT, "micro_batch": COUNT,
        "patch_size": [*COUNT, "1000000"], "draws": COUNT, "validate_every": COUNT, "patience": COUNT,
        "seed": [*WHOLE, str(2**70)], "lr": REAL, "student_lr": REAL, "clip": POSITIVE,
        "ema": [*REAL, "1"], "val_fraction": [*REAL, "1"], "self_supervised": [*REAL, "0.5"],
        "budget": ["", "-1min", "0s", "10", "soon", "5min"], "schedule": WORD, "compile": ["maybe"],
        "optimizer": [*WORD, "LBFGS", "SparseAdam", "Muon", "Optimizer", "lr_scheduler", "__class__"],
        "init": ["", "missing", "folder", "pipe", "halves/other", "halves/torn", "text"],
        "out": FOLDERS, "sampler": [*WORD, "raises.X", "exits.X", "missing.X", "raises",
        "os.getcwd", "samplers.", ".HDN", "text.yaml", "pipe"], "student": [*WORD, "exits.X", "HDN"],
        "loss": [*WORD, "raises.X", "L1 + raises.X", "1*", "nan*L1", "-1*L1"],
        "sampler.levels": ["-1", "0", "many"], "sampler.noise_model": ["", "pipe", "folder", "noise"],
    },
    "predict": COMMON | {
        "draws": WHOLE, "tile": [*COUNT, "5"], "halo": WHOLE, "statistic": WORD, "dtype": WORD,
        "out": [*FILES, "noisy.tif", "link.tif"], "overwrite": ["maybe"], "with": RUNS,
    },
    "evaluate": COMMON | {"draws": COUNT, "frames": COUNT, "out": FOLDERS, "cost": ["maybe"]},
    "table1": COMMON | {"draws": COUNT, "frames": COUNT, "out": FOLDERS, "run": RUNS},
    "report": {"config": CONFIGS, "out": [*FILES, "noisy.tif", "page.html"]},
    "calibrate": COMMON | {"level": [*POSITIVE, "1"], "test_noisy": ["noisy.tif"], "test_clean": TRUTHS},
    "export": {"config": CONFIGS, "format": WORD, "out": [*FILES, "page.html"]},
    "cache": COMMON | {
        "draws": COUNT, "keep": [*COUNT, "7"], "tile": [*COUNT, "5"], "halo": WHOLE, "out": FOLDERS,
    },
    "noise-model": {"config": CONFIGS, "axes": COMMON["axes"]} | {
        "kind": WORD, "method": WORD, "held_out": [*POSITIVE, "1"], "n_gaussian": COUNT, "n_coeff": COUNT,
        "context": WORD, "steps": COUNT, "seed": [*WHOLE, str(2**70)], "out": FILES, "signal": NOT_FILES,
        "data": NOT_FILES, "percentiles": ["", "[1]", "[50, 5]", "[nan, 5]", "many"],
    },
    "info": {"config": CONFIGS},
}  # fmt: skip
PLACES = {  # which of the words of a command that works name a run, an image, a ground truth
    "train": {0: IMAGES}, "predict": {0: RUNS, 1: IMAGES}, "evaluate": {0: RUNS, 1: IMAGES, 2: TRUTHS},
    "table1": {1: RUNS, 3: IMAGES, 4: TRUTHS}, "report": {0: RUNS},
    "calibrate": {0: RUNS, 1: IMAGES, 2: TRUTHS}, "export": {0: RUNS}, "cache": {0: RUNS, 1: IMAGES},
    "noise-model": {1: [*NOT_FILES, "rgb.tif", "nan.tif", "huge.tif", "complex.tif"]},
    "info": {0: [*RUNS, *IMAGES]},
}  # fmt: skip
ALLOWED = {  # what is bad elsewhere and good here
    ("train", "two.tif"), *((command, "small.tif") for command in ("predict", "info", "cache")),
    ("info", "noisy.tif"), ("info", "two.tif"),
    *(("cache", f"halves/{student}") for student in ("no_student", "torn", "pipe")),
    *((command, "halves/no_sampler") for command in ("predict", "calibrate", "report", "export", "info")),
}  # fmt: skip


class Case(NamedTuple):
    arguments: list[str]
    rights: bool = True  # False: as a user who may not read secret.tif


class Ending(NamedTuple):
    code: int | str
    lines: list[str]  # on stderr, without progress bars
    printed: str


def cases(command: str, places: dict[str, str]) -> Iterator[list[str]]:
    """places: folders that are full or read-only, where there are some."""
    base = [command, *BASE[command]]
    for place, values in PLACES[command].items():
        for value in values:
            if (command, value) not in ALLOWED:
                yield [*base[: place + 1], value, *base[place + 2 :]]
    for option, values in OPTIONS[command].items():
        for value in values:
            yield [*_without(base, option), f"--{option}", value]
    yield [command]
    yield [*base, "--nonsense", "1"]
    yield [*base, "surplus"]
    for folder in places.values():
        yield from _in_place(command, base, folder)


def _without(words: list[str], option: str) -> list[str]:
    """Options of a command may come once; a positional is no option."""
    flag = f"--{option}"
    if flag not in words:
        return words
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


def _in_place(command: str, base: list[str], folder: str) -> Iterator[list[str]]:
    """The command, made to write into a folder where it cannot."""
    if "--out" in base:
        at = base.index("--out") + 1
        yield [*base[:at], f"{folder}/{base[at]}", *base[at + 1 :]]
    if command in ("calibrate", "report", "export", "evaluate"):
        yield [command, f"{folder}/run", *_without(base, "out")[2:]]


def make_world(folder: Path) -> None:
    """Good and bad files of every kind."""
    os.chdir(folder)
    y, x = np.mgrid[:48, :40] / 8
    rng = np.random.default_rng(0)
    blobs = 200 + 60 * np.sin(y)[None] * np.cos(x + np.arange(4)[:, None, None])
    noisy = (blobs + rng.normal(0, 10, blobs.shape)).astype(np.float32)
    for name, pixels in {
        "noisy": noisy, "clean": blobs[0].astype(np.float32), "nan": np.where(noisy > 220, np.nan, noisy),
        "huge": noisy.astype(np.float64) * 1e300, "complex": noisy.astype(np.complex64),
        "small": noisy[:, :3], "secret": noisy,
    }.items():  # fmt: skip
        tifffile.imwrite(f"{name}.tif", pixels, photometric="minisblack")
    tifffile.imwrite("two.tif", np.stack([noisy] * 2, 1), imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite("rgb.tif", np.zeros((48, 40, 3), np.uint8), photometric="rgb")
    Path("secret.tif").chmod(0)
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("mine")
    os.mkfifo("pipe")
    Path("empty").touch()
    Path("text").write_text("not an image")
    Path("page.html").write_text("<p>mine</p>")
    Path("noise").write_bytes(rng.bytes(5000))
    Path("link.tif").symlink_to("noisy.tif")
    Path("raises.py").write_text("1 / 0\n")
    Path("exits.py").write_text("import sys\nsys.exit(0)\n")
    Path("text.yaml").write_text("class_path: nowhere.X\n")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for name, text in {
        "bomb": bomb, "deep": "steps: " + "[" * 50_000, "list": "- steps\n- 3\n", "loop": "steps: &a [*a]\n",
        "tab": "steps:\n\t- 3\n", "unknown": "stepz: 3\n", "nul": 'out: "a\\0b"\naxes: "a\\0b"\n',
    }.items():  # fmt: skip
        Path(f"{name}.yaml").write_text(text)
    _make_runs()


def _make_runs() -> None:
    for name, loss in {"run": "MeanVariance", "other": "L2"}.items():
        arguments = ["train", "noisy.tif", "--out", name, "--loss", loss, *QUICK]
        if name == "other":
            arguments[arguments.index("--student.filters") + 1] = "6"
        if code := _child(Case(arguments)).code:
            raise SystemExit(f"{name}: training ended with {code}")
    for kind in ("no_sampler", "no_student", "other", "torn", "pipe"):
        shutil.copytree("run", f"halves/{kind}")
    for kind in ("no_sampler", "no_student", "pipe"):
        Path(f"halves/{kind}/{'sampler' if kind == 'no_sampler' else 'student'}.safetensors").unlink()
    os.mkfifo("halves/pipe/student.safetensors")
    torn = Path("halves/torn/student.safetensors")
    torn.write_bytes(torn.read_bytes()[:-100])
    shutil.rmtree("halves/other")
    Path("halves/other").mkdir()
    _other_architecture()
    shutil.rmtree("other")


def _other_architecture() -> None:
    """A student whose file says that it has more filters than its tensors have."""
    from distill.runs.tensors import load, save

    for file in ("student", "sampler"):
        stored, header = load(Path(f"run/{file}.safetensors"))
        described = header["backbone" if file == "student" else "sampler"]
        described["arguments"]["filters"] += 2
        save(Path(f"halves/other/{file}.safetensors"), stored, header)


def _child(case: Case, limit: float = 120) -> Ending:
    """What becomes of a command: its exit code, or how else it ended; what it said."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            _run(case, out, err)
        code = _wait(child, limit)
        said = [_text(file) for file in (out, err)]
    lines = [line for line in said[1].splitlines() if line.strip() and not BAR.search(line)]
    return Ending(code, lines, said[0])


def _text(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _run(case: Case, out, err) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if not case.rights and os.getuid() == 0:
        os.setuid(65534)
    try:
        code = main(case.arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int, limit: float) -> int | str:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no end in {limit} s"


def snapshot(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "file" if path.is_file() else "other"
        found[str(path.relative_to(folder))] = (
            hashlib.sha256(path.read_bytes()).hexdigest() if kind == "file" else kind
        )
    return found


@contextmanager
def mounted(world: Path) -> Iterator[dict[str, str]]:
    """Names of a folder on a full disk and of one that is read-only, each with a run in it; none where
    nothing can be mounted."""
    with ExitStack() as stack:
        places = {}
        for name in ("full", "readonly"):
            folder = world / name
            folder.mkdir()
            options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
            if subprocess.run(options, capture_output=True, check=False).returncode:
                folder.rmdir()
                print(f"{name}: nothing can be mounted here; left out")
                continue
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            shutil.copytree(world / "run", folder / "run")
            places[name] = name
            if name == "readonly":
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
                continue
            with open(folder / "filler", "wb", 0) as file:
                try:
                    while file.write(b"x" * 4096):
                        pass
                except OSError:
                    pass
        yield places


def problem(ending: Ending) -> str:
    if ending.code != 2:
        return f"exit {ending.code}"
    if len(ending.lines) != 1:
        return f"{len(ending.lines)} lines"
    return "printed something" if ending.printed else ""


def tried(commands: list[str], world: Path) -> tuple[int, list[str]]:
    """(number of inputs, what went wrong with some)."""
    wrong, count = [], 0
    make_world(world)
    for command in commands:  # that the others differ from
        ending = _child(Case([command, *BASE[command]]))
        if ending.code:
            wrong.append(f"{command}: the good input ended with {ending}")
    _delete_new(world)
    (world / "run" / "calibration.json").unlink(missing_ok=True)
    with mounted(world) as places:
        before = snapshot(world)
        for command in commands:
            for arguments in cases(command, places):
                count += 1
                ending = _child(Case(arguments, "secret.tif" not in arguments), LIMIT)
                after = snapshot(world)
                changed = sorted({p for p in before.keys() | after.keys() if before.get(p) != after.get(p)})
                what = problem(ending) or (f"changed {changed}" if changed else "")
                if what:
                    last = (ending.lines or [""])[-1][:150]
                    said = " ".join(each for each in arguments if each not in QUICK)
                    wrong.append(f"{what}: distill {said!r}\n      {last}")
                    print(wrong[-1], flush=True)
                    _delete_new(world)
                    after = snapshot(world)
                before = after
    return count, wrong


def _delete_new(world: Path) -> None:
    """What commands that should not have worked, or that should, have written."""
    for new in world.glob("new*"):
        shutil.rmtree(new) if new.is_dir() else new.unlink()


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(BASE)

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        began, home = time.monotonic(), Path.cwd()
        count, wrong = tried(chosen, Path(folder))
        os.chdir(home)
    print(f"{count} bad inputs: {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    sys.exit(bool(wrong))
