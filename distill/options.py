"""Command-line options: readable help, short flags, and errors in one line, on top of jsonargparse."""

import argparse
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

import jsonargparse
import yaml

from distill.errors import UserError
from distill.files import check_readable

MAX_VALUES, MAX_BYTES = 10_000, 1_000_000  # limits of a file of options

_OWN = {  # options that jsonargparse adds: (their value, their help)
    "_ActionHelpClassPath": (" NAME", "show the options of that class"),
    "_ActionPrintConfig": ("", "print these settings as YAML and exit"),
}


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help with the text and the default of each option, without its Python type.

    The usage line contains only the required options.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28} | options)

    def _get_help_string(self, action: argparse.Action) -> str:
        own = _OWN.get(type(action).__name__)
        text = own[1] if own else (action.help or "").rstrip(".")
        in_text = not action.option_strings or "efault:" in text
        is_empty = action.default is False or action.default in (None, (), argparse.SUPPRESS)
        return text if in_text or is_empty else f"{text} (default: %(default)s)"

    def _format_usage(self, usage: Any, actions: Any, *args: Any, **kwargs: Any) -> str:
        positional = [a for a in actions if not a.option_strings]
        required = [a for a in actions if a.option_strings and a.required]
        parts = [{"?": f"[{a.dest}]", "+": f"{a.dest} ..."}.get(str(a.nargs), a.dest) for a in positional]
        parts += [self._format_action_invocation(a) for a in required]
        return f"usage: {' '.join([self._prog, *map(str, parts)])} [options]\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        own = _OWN.get(type(action).__name__)
        if own or is_flag(action):
            return action.option_strings[0] + (own[0] if own else "")
        return super()._format_action_invocation(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        hint = getattr(action, "_typehint", action.type)
        kinds = {hint, *get_args(hint)}
        return (
            "N"
            if int in kinds
            else "X"
            if float in kinds
            else super()._get_default_metavar_for_optional(action)
        )


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises UserError for mistakes, and accepts flags without a value as true."""

    def __init__(self, *args: Any, formatter_class: type = HelpFormatter, **options: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _, told, missing = message.partition("the following arguments are required: ")
        if told:  # by their names in Python; on the command line most begin with --
            flags = {each.dest: each.option_strings[0] for each in self._actions if each.option_strings}
            message = "missing: " + ", ".join(flags.get(name, name) for name in missing.split(", "))
        raise UserError(f"{message} (try {self.prog} --help)") from ex

    def parse_args(self, args: Sequence[str], *others: Any, **options: Any) -> jsonargparse.Namespace:
        flags = {name for action in self._actions if is_flag(action) for name in action.option_strings}
        pairs = zip(args, [*args[1:], ""], strict=False)
        words = [f"{a}=true" if a in flags and b not in ("true", "false") else a for a, b in pairs]
        for word in args:
            _check_no_pipe(word)
        for path in values(args, "--config"):
            check_config(path)
        with _plug_ins_named():
            return super().parse_args(words, *others, **options)


def values(arguments: Sequence[str], flag: str) -> list[str]:
    """Values of a flag that is passed as `--flag value` or `--flag=value`."""
    after = [b for a, b in pairwise([*arguments, ""]) if a == flag]
    return after + [a.partition("=")[2] for a in arguments if a.startswith(f"{flag}=")]


def _check_no_pipe(word: str) -> None:
    """UserError for a pipe or device, which jsonargparse might try to read as settings without an end."""
    path = word.partition("=")[2] if word.startswith("--") else word
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{path}: is a pipe or a device; pass a file or a folder")


def check_config(path: str) -> None:
    """UserError for a file that is not a YAML mapping of options, or would take too long to parse."""
    check_readable(path, "pass a YAML file with options")
    advice = "pass a file with lines such as steps: 600"
    try:
        text = Path(path).read_text(encoding="utf-8") if os.path.getsize(path) < MAX_BYTES else ""
        brackets = text.count("[") + text.count("{")  # the time of PyYAML is quadratic in their number
        root = yaml.compose(text, yaml.SafeLoader) if brackets < MAX_VALUES else None
        count = _count_values(root, {})
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({error}); {advice}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: has no options, or too many; {advice}")
    if count > MAX_VALUES:
        raise UserError(f"{path}: has {count:.3g} values with its aliases expanded, allowed are {MAX_VALUES}")


def _count_values(node: Any, known: dict[int, int]) -> int:
    """Number of values with all aliases expanded. RecursionError if an alias contains itself."""
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for each in inner for part in (each if isinstance(each, tuple) else [each])]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


@contextmanager
def _plug_ins_named() -> Iterator[None]:
    """Raises UserError with file and line if a module of the user fails or exits while it is imported."""
    try:
        yield
    except UserError:
        raise
    except RecursionError:
        raise UserError("options: nested too deeply") from None
    except (Exception, SystemExit) as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("argparse", "jsonargparse"):
            raise  # --help, or a bug
        where = f"{frame.f_code.co_filename}, line {line}"
        raise UserError(
            f"{where}: {type(error).__name__} when imported ({error}); correct that file"
        ) from error


def is_flag(action: argparse.Action) -> bool:
    """Whether the option is a bool, which may be passed without a value."""
    return getattr(action, "_typehint", None) is bool
