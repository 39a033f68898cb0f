"""How a command treats the terminal: third parties' chatter away, our own log on it; and options taken by hand."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence

from fl_lightning import processes
from fl_lightning.errors import InputError


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
        ours.setLevel(logging.INFO if processes.is_first() else logging.ERROR)
        ours.propagate = False
    hush()


def hush() -> None:
    """Third parties' log lines away; before their import and after it, which sets levels of its own."""
    chatty = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes", "huggingface_hub")
    for name in chatty:
        logging.getLogger(name).setLevel(logging.ERROR)
