"""The command `distill`, which calls distill.cli. `--help` and `--version` do not import torch."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from distill.errors import UserError, of_the_machine

COMMANDS = {
    "denoise": "train on noisy images, denoise them and write a report",
    "train": "train a sampler and a student together on noisy images",
    "predict": "denoise images with a trained run",
    "evaluate": "compare draws and student, with or without ground truth",
    "table1": "evaluate several runs on several data sets, as in Table 1 of the paper",
    "report": "write an HTML page about runs: tables, pictures, curves",
    "calibrate": "scale a student's intervals so that they contain the truth as often as they state",
    "export": "export a student as ONNX, torch.export program or bioimage.io package",
    "push": "share a run as a Hugging Face repository",
    "pull": "fetch a run that was shared with push",
    "cache": "write a sampler's draws to disk, to train several students from them",
    "import": "import a published HDN or Direct Denoiser checkpoint as a run",
    "info": "describe a run or an image",
    "noise-model": "`noise-model fit`: fit a noise model to calibration frames, repeats or the data",
}
RESUMED = ("denoise", "train", "predict", "evaluate", "table1", "cache")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command -> exit code: 0, 2 after an error that is printed in one line, or 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"distill {version('posterior-distill')}")
        return 0
    try:
        if command not in COMMANDS:
            raise UserError(f"got '{command}', allowed are {', '.join(COMMANDS)}; try distill --help")
        _log_to_stderr()
        with _interrupted_after():
            from distill import cli, hardware

        hardware.keep_freed_memory()
        cli.run(command, arguments[1:])
        _flush_output()
    except SystemExit as done:  # --help and --print_config
        return int(done.code or 0)
    except KeyboardInterrupt:
        advice = "; to resume, run the same command again" * (command in RESUMED)
        print(f"distill: stopped{advice}", file=sys.stderr)
        return 130
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else of_the_machine(error)
        if not text:  # a bug
            raise
        if os.environ.get("DISTILL_TRACEBACK"):
            traceback.print_exc()
        else:
            print("distill: " + " ".join(text.split()), file=sys.stderr)
        return 2
    return 0


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Delays Ctrl-C until the block is done: it would crash the libraries in the midst of their import."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    received: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if received:
        raise KeyboardInterrupt


def _flush_output() -> None:
    """Flushes stdout here, because at exit Python would show a traceback for a closed pipe or a full disk."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"the output cannot be written ({error.strerror})") from error


def _log_to_stderr() -> None:
    logger = logging.getLogger("distill")
    logger.handlers = [logging.StreamHandler()]  # replaced, so that repeated calls of main log once
    logger.setLevel(logging.INFO)


def _usage() -> str:
    commands = "\n".join(f"  distill {name:13}{text}" for name, text in COMMANDS.items())
    return f"""Distil a posterior sampler into a network that denoises in one pass.

{commands}

`distill COMMAND --help` lists the options of a command. With DISTILL_TRACEBACK=1 in the environment, errors
are printed with their traceback. To begin:
  distill denoise noisy.tif --out clean.tif"""


if __name__ == "__main__":
    sys.exit(main())
