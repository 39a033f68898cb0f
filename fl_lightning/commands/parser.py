"""The argparse parser of all commands; its errors are an `InputError` of one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from fl_lightning.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated options, and raises `InputError` where argparse would end the process.

    Args:
        command: the command's name, for ``--help``.
        description: printed as it is by ``--help``.
        settings: further arguments of `argparse.ArgumentParser`.

    Example:
        >>> parser = Parser("runs", "List runs.")
        >>> _ = parser.add_argument("--output", default="lightning_logs")
        >>> parser.read([]).output
        'lightning_logs'
    """

    def __init__(self, command: str, description: str = "", **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"fl-lightning {command}", description=description, allow_abbrev=False, **settings)

    def takes_run(self, *, required: bool = True) -> None:
        """Add ``--run`` and ``--output``, the arguments of `fl_lightning.storage.run_folder.find_run_folder`."""
        help_ = "a run folder, or 'last' under --output"
        self.add_argument("--run", required=required, type=not_empty, metavar="RUN", help=help_)
        self.add_argument("--output", default="lightning_logs", metavar="DIR", help="folder of runs (lightning_logs)")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options in the arguments.

        Raises:
            InputError: one line for an unknown option, and for a missing or bad value.
            SystemExit: after ``--help``.
        """
        options, rest = self.read_known(argv)
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            hint = nearest(rest[0].partition("=")[0], known) or f"; '{self.prog} --help' lists the options"
            raise InputError(f"unknown argument {rest[0]}{hint}")
        return options

    def read_known(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """(the options of this parser, the other arguments), for a command whose other options are config keys.

        Raises:
            InputError: one line for a missing or bad value.
        """
        return self.parse_known_args(argv)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as an `InputError`, in the words of the other messages."""
        text = message.removeprefix("argument ")
        text = text.replace("expected one argument", "expected a value, got none")
        text = text.replace("expected at least one argument", "expected one value or more, got none")
        text = text.replace("the following arguments are required: ", "expected a value for ")
        raise InputError(f"{text} ('{self.prog} --help' lists the options)")


def not_empty(text: str) -> str:
    """A type for ``add_argument``: text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got none")
    return text


def at_least(low: int) -> Any:
    """A type for ``add_argument``: an integer of at least `low`.

    Example:
        >>> at_least(1)("3")
        3
    """

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) >= low):
            raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, got {text[:40]!r}")
        return int(text)

    return read


def number_above(low: float, high: float = float("inf")) -> Any:
    """A type for ``add_argument``: a number above `low` and below `high`.

    Example:
        >>> number_above(0, 1)("0.2")
        0.2
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < high:
            limit = "" if high == float("inf") else f" and below {high:g}"
            raise argparse.ArgumentTypeError(f"expected a number above {low:g}{limit}, got {text[:40]!r}")
        return value

    return read
