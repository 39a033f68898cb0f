"""An argparse parser for the commands that take a handful of options; its errors are one line, as everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from fl_lightning.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """Takes whole options only, and raises `InputError` where argparse would end the process.

    Args:
        command: the command's name, for ``--help``.
        description: what it does, as it is to be printed.
        settings: further arguments of `argparse.ArgumentParser`.

    Example:
        >>> parser = Parser("runs", "List runs.")
        >>> _ = parser.add_argument("--output", default="lightning_logs")
        >>> parser.read([]).output
        'lightning_logs'
    """

    def __init__(self, command: str, description: str, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"fl-lightning {command}", description=description, allow_abbrev=False, **settings)

    def takes_run(self) -> None:
        """Add ``--run`` and ``--output``, which `fl_lightning.storage.run_folder.find_run_folder` makes a folder of."""
        self.add_argument("--run", required=True, metavar="RUN", help="a run folder, or 'last' under --output")
        self.add_argument("--output", default="lightning_logs", metavar="DIR", help="where runs are (lightning_logs)")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options in the arguments.

        Raises:
            InputError: one line for an unknown option, a value that is missing or one that does not fit.
            SystemExit: after ``--help``.
        """
        found, rest = self.parse_known_args(argv)
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            hint = nearest(rest[0].partition("=")[0], known) or f", wanted one that '{self.prog} --help' lists"
            raise InputError(f"unknown argument {rest[0]}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print, in our words."""
        message = message.removeprefix("argument ").replace("expected one argument", "no value, wanted one")
        raise InputError(f"{message} ('{self.prog} --help' lists what is wanted)")


def at_least(least: int) -> Any:
    """A type for ``add_argument``: an integer of at least `least`.

    Example:
        >>> at_least(1)("3")
        3
    """

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) >= least):
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, wanted an integer of at least {least}")
        return int(text)

    return read


def number_above(least: float, below: float = float("inf")) -> Any:
    """A type for ``add_argument``: a number above `least` and below `below`.

    Example:
        >>> number_above(0, 1)("0.2")
        0.2
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least < value < below:
            most = "" if below == float("inf") else f" and below {below:g}"
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, wanted a number above {least:g}{most}")
        return value

    return read
