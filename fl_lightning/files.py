"""Files and run folders: every write is atomic, every name that comes from outside is checked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def check_name(name: str, what: str = "name") -> str:
    """The name itself if it is safe as a folder name: letters, digits, ``_``, ``-``, ``.``; never ``.`` or ``..``.

    Raises:
        InputError: for anything else.
    """
    if not _SAFE_NAME.fullmatch(name) or name.strip(".") == "" or len(name) > 128:
        raise InputError(f"{what} {name!r}: wanted 1 to 128 letters, digits, '_', '-' or '.', not only dots; rename it")
    return name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts client_2 before client_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name in the same folder, flush, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of JSON with sorted nothing and an indent of one: diffs stay readable, order is the caller's."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); wanted a JSON file") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old: Path | None = None
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, old / path.name)
        os.replace(temporary, path)
    except BaseException:
        if old is not None and (old / path.name).exists():
            os.replace(old / path.name, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def check_output(root: Path) -> None:
    """Check that a run folder could be made under `root`, without making anything.

    Raises:
        InputError: if `root` is a file, or may not be written to.
    """
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"output: {place} is a file, wanted a folder; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"output: {place} may not be written to; choose another --output")


def create_run_folder(root: Path) -> Path:
    """A new ``version_N`` folder under `root`, N one above the highest there; two processes never get the same one.

    Raises:
        InputError: if the folder cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            taken = [int(m[1]) for p in root.iterdir() if (m := re.fullmatch(r"version_(\d+)", p.name))]
            folder = root / f"version_{max(taken, default=-1) + 1}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(
            f"output: cannot create a run folder in {root} ({error.strerror}); choose another --output"
        ) from error


def find_run_folder(run: str, root: Path) -> Path:
    """The run folder that `run` names: a path, or ``last`` for the newest ``version_N`` under `root`.

    Raises:
        InputError: if there is no such run.
    """
    if run == "last":
        runs = [p for p in root.glob("version_*") if re.fullmatch(r"version_\d+", p.name) and p.is_dir()]
        if not runs:
            raise InputError(f"run 'last': no version_N folder in {root}; run 'fit' first or name another --output")
        return max(runs, key=lambda p: int(p.name.split("_")[1]))
    folder = Path(run)
    if not folder.is_dir() and (root / run).is_dir():
        folder = root / run
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"run {run!r}: no config.yaml there; wanted a run folder such as {root / 'version_0'} or 'last'"
        )
    return folder
