"""The command `distill`: dispatches to distill.cli, without importing torch before it must."""

import logging
import os
import sys
import traceback

from distill.errors import UserError, of_the_machine

COMMANDS = {
    "denoise": "from noisy images to a denoised file and a report: train, predict, evaluate",
    "train": "co-train a sampler and a student on noisy images",
    "predict": "denoise images with a trained run",
    "evaluate": "compare draws and student, with or without ground truth",
    "table1": "several runs on several data sets, as the paper's Table 1",
    "report": "one HTML page of runs: tables, pictures, curves",
    "calibrate": "make a student's intervals hold the truth as often as they say",
    "export": "a student as ONNX, torch.export program or bioimage.io package",
    "push": "share a run as a Hugging Face repository",
    "pull": "fetch a run that was shared so",
    "cache": "a sampler's draws on disk, for training many students without running it again",
    "import": "a published HDN or Direct Denoiser checkpoint as a run",
    "info": "what is in a run or an image",
    "noise-model": "`noise-model fit`: a noise model from calibration frames, repeats or the data",
}
RESUMED = ("denoise", "train", "predict", "evaluate", "table1", "cache")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot work, or 130 when interrupted."""
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
        from distill import cli, hardware

        hardware.keep_freed_memory()
        cli.run(command, arguments[1:])
        _flush_output()
    except SystemExit as done:  # --help and --print_config
        return int(done.code or 0)
    except KeyboardInterrupt:
        further = "; to resume, run the same command again" * (command in RESUMED)
        print(f"distill: stopped{further}", file=sys.stderr)
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


def _flush_output() -> None:
    """A closed pipe or a full disk is one line here; at exit Python would show a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"what it prints cannot be written ({error.strerror})") from error


def _log_to_stderr() -> None:
    logger = logging.getLogger("distill")
    logger.handlers = [logging.StreamHandler()]  # one, on the stderr of now, however often main is called
    logger.setLevel(logging.INFO)


def _usage() -> str:
    commands = "\n".join(f"  distill {name:13}{text}" for name, text in COMMANDS.items())
    return f"""Distil a posterior sampler into a network that denoises in one pass.

{commands}

`distill COMMAND --help` lists a command's options; with DISTILL_TRACEBACK=1 in the environment, errors
come with where they were raised. To begin:
  distill denoise noisy.tif --out clean.tif"""


if __name__ == "__main__":
    sys.exit(main())
