"""What ships inside the package: a tiny pre-trained base model and four departments of real text."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.errors import InputError, nearest

PREFIX = "bundled:"
NAMES = ("departments", "tiny_base")


def resolve(name: str) -> Path:
    """The path of ``bundled:NAME``, or the name itself as a path.

    Raises:
        InputError: nothing of that name is bundled.

    Example:
        >>> resolve("bundled:departments").name
        'departments'
    """
    if not name.startswith(PREFIX):
        return Path(name).expanduser()
    wanted = name.removeprefix(PREFIX)
    if wanted not in NAMES:
        choices = ", ".join(PREFIX + n for n in NAMES)
        raise InputError(f"{name}: not in the package, wanted {choices}{nearest(wanted, NAMES)}")
    return Path(__file__).parent / wanted
