"""How a command treats the terminal: third parties' chatter away, our own log on it; and options taken by hand."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence

from fl_lightning import launch
from fl_lightning.errors import InputError

DIGITS = 18
"""Of a number on the command line, at most: it fits into 64 bits, and is a float."""


def take_option(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """(value of a flag or None, the other arguments).

    Raises:
        InputError: if the flag has no value.

    Example:
        >>> take_option(["--run", "last", "--json"], "--run")
        ('last', ['--json'])
    """
    rest, value = [], None
    items = iter(argv)
    for item in items:
        if item == flag:
            value = next(items, None)
        elif item.startswith(f"{flag}="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
            continue
        if not value or value.startswith("--"):
            raise InputError(f"{flag}: no value, wanted one")
    return value, rest


def take_all(argv: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """(values of a flag that may be given several times, the other arguments)."""
    values: list[str] = []
    rest = list(argv)
    while any(item == flag or item.startswith(f"{flag}=") for item in rest):
        first = next(i for i, item in enumerate(rest) if item == flag or item.startswith(f"{flag}="))
        last = first + 1 if "=" in rest[first] else first + 2
        value, _ = take_option(rest[first:last], flag)
        values.append(str(value))
        rest = rest[:first] + rest[last:]
    return values, rest


def take_flag(argv: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    """(whether a flag without a value is there, the other arguments)."""
    return flag in argv, [item for item in argv if item != flag]


def take_number(argv: Sequence[str], flag: str, least: int) -> tuple[int | None, list[str]]:
    """(whole number of a flag or None, the other arguments).

    Raises:
        InputError: if it is no whole number, or below `least`.
    """
    value, rest = take_option(argv, flag)
    if value is None:
        return None, rest
    if len(value) > DIGITS:
        raise InputError(f"{flag}: got {value[:DIGITS]}…, wanted a whole number of at most {DIGITS} digits")
    if not value.isdecimal() or int(value) < least:
        raise InputError(f"{flag}: got {value!r}, wanted a whole number of {least} or more")
    return int(value), rest


def amount(size: int) -> str:
    """A number of bytes for people.

    Example:
        >>> amount(20_480), amount(3 * 2**30)
        ('20.0 KiB', '3.0 GiB')
    """
    unit, power = next((u, p) for u, p in (("GiB", 30), ("MiB", 20), ("KiB", 10)) if size >= 2**p or p == 10)
    return f"{size / 2**power:,.1f} {unit}"


def quiet() -> None:
    """Telemetry off, third parties' notices that no user can act on away, our own log on the terminal."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", module="lightning")
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="[%X]")
    ours = logging.getLogger("fl_lightning")
    if not ours.handlers:
        ours.addHandler(handler)
        ours.setLevel(logging.INFO if launch.is_first() else logging.ERROR)
        ours.propagate = False
    hush()


def hush() -> None:
    """Third parties' log lines away; before their import and after it, which sets levels of its own."""
    chatty = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes", "huggingface_hub")
    for name in chatty:
        logging.getLogger(name).setLevel(logging.ERROR)
