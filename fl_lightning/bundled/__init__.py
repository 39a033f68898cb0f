"""Data inside the package: a tiny pretrained base model and four departments of real text."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.errors import InputError, nearest

PREFIX = "bundled:"
NAMES = ("departments", "tiny_base")


def resolve(name: str) -> Path:
    """The path of ``bundled:NAME``, or the name itself as a path.

    Raises:
        InputError: if the package has no data of this name.

    Example:
        >>> resolve("bundled:departments").name
        'departments'
    """
    if not name.startswith(PREFIX):
        return Path(name).expanduser()
    item = name.removeprefix(PREFIX)
    if item not in NAMES:
        choices = " or ".join(PREFIX + n for n in NAMES)
        raise InputError(f"expected {choices}, got {name!r}{nearest(item, NAMES)}")
    return Path(__file__).parent / item
