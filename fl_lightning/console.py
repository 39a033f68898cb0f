"""Output on the terminal: our own log, third-party libraries silenced, numbers of bytes for people."""

from __future__ import annotations

import logging
import os
import warnings

from fl_lightning import launch


def format_bytes(size: int) -> str:
    """A number of bytes with a unit.

    Example:
        >>> format_bytes(20_480), format_bytes(3 * 2**30)
        ('20.0 KiB', '3.0 GiB')
    """
    unit, power = next((u, p) for u, p in (("GiB", 30), ("MiB", 20), ("KiB", 10)) if size >= 2**p or p == 10)
    return f"{size / 2**power:,.1f} {unit}"


def setup_logging() -> None:
    """Show our own log on the terminal, and turn off telemetry and notices of libraries that no user can act on."""
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
    logger = logging.getLogger("fl_lightning")
    if not logger.handlers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if launch.is_first() else logging.ERROR)
        logger.propagate = False
    silence_libraries()


def silence_libraries() -> None:
    """Hide log lines of libraries below errors; call it before importing them and after, since they set levels."""
    for name in (
        "lightning",
        "lightning.fabric",
        "lightning.pytorch",
        "transformers",
        "bitsandbytes",
        "huggingface_hub",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
