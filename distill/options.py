"""Command-line options as people read and type them, on top of jsonargparse's."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

import jsonargparse

from distill.errors import UserError

_OWN = {  # jsonargparse's own options: their value, and their text
    "_ActionHelpClassPath": (" NAME", "the options of that class"),
    "_ActionPrintConfig": ("", "print these settings as YAML, for --config, and run nothing"),
}


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """An option's text and default: its Python type, and every class of torch that would do, help nobody.
    The usage line has what must be given."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28} | options)

    def _get_help_string(self, action: argparse.Action) -> str:
        own = _OWN.get(type(action).__name__)
        text = own[1] if own else (action.help or "").rstrip(".")
        tells = not action.option_strings or "efault:" in text
        untold = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return text if tells or untold else f"{text} (default: %(default)s)"

    def _format_usage(self, usage: Any, actions: Any, *args: Any, **kwargs: Any) -> str:
        positional = [a for a in actions if not a.option_strings]
        needed = [a for a in actions if a.option_strings and a.required]
        parts = [{"?": f"[{a.dest}]", "+": f"{a.dest} ..."}.get(str(a.nargs), a.dest) for a in positional]
        parts += [self._format_action_invocation(a) for a in needed]
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
    """One line for every mistake; a flag alone means true."""

    def __init__(self, *args: Any, formatter_class: type = HelpFormatter, **options: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{message} (try {self.prog} --help)") from ex

    def parse_args(self, args: Sequence[str], *others: Any, **options: Any) -> jsonargparse.Namespace:
        flags = {name for action in self._actions if is_flag(action) for name in action.option_strings}
        followed = zip(args, [*args[1:], ""], strict=False)
        given = [f"{a}=true" if a in flags and b not in ("true", "false") else a for a, b in followed]
        return super().parse_args(given, *others, **options)


def is_flag(action: argparse.Action) -> bool:
    return getattr(action, "_typehint", None) is bool
