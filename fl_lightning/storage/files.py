"""Files: every write is atomic and on the disk when it ends, every name that comes from outside is checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
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
    """Write a file whole or not at all: temporary name in the same folder, fsync, rename, fsync of the folder."""
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: without them a whole file may still be gone after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    if os.path.exists(path) and not path.is_file():  # a FIFO would wait for its writer
        raise InputError(f"{path}: cannot be read (not a regular file); wanted a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); wanted a JSON file") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not valid JSON ({reason}); wanted it as it was written") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Where `path` exists its files are replaced one by one, each whole, and those that the new folder lacks are removed:
    a reader always finds the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        files = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
        for file in files:
            _sync_file(temporary / file)
        for folder in (temporary, *(p for p in temporary.rglob("*") if p.is_dir())):
            sync_folder(folder)
        if not path.exists():
            os.replace(temporary, path)
            sync_folder(path.parent)
            return
        for file in files:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, path / file)
        for old in [p for p in path.rglob("*") if p.is_file() and p.relative_to(path) not in files]:
            old.unlink()
        for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
            sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left anywhere under `folder`."""
    for path in [p for p in folder.rglob(".*.tmp") if not p.is_symlink()]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Note the size and SHA-256 of every file in a folder in its ``manifest.json``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    write_json(folder / MANIFEST, {p.relative_to(folder).as_posix(): _facts(p) for p in files})


def check_manifest(folder: Path) -> Collection[str]:
    """Check that a folder holds what its manifest says.

    Returns:
        The names of the files that it vouches for.

    Raises:
        InputError: naming the first file that is missing or has changed.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise InputError(f"{folder / MANIFEST}: got {type(manifest).__name__}, wanted {{file: {{bytes, sha256}}}}")
    for name, wanted in manifest.items():
        path = folder.joinpath(*(check_name(part, f"{folder / MANIFEST}: file") for part in name.split("/")))
        if not path.is_file():
            raise InputError(f"{path}: missing, though {MANIFEST} names it")
        if (got := _facts(path)) != wanted:
            raise InputError(f"{path}: got {got}, wanted {wanted} by {MANIFEST}")
    return manifest.keys()


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
