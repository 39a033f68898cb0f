"""Files: a write is atomic and on the disk when it returns, a read accepts only regular UTF-8 files.

New files and folders have the modes that the user's umask asks for, as the system gives them to `open` and `mkdir`;
secrets are 0600 in folders of 0700 whatever the umask is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError

FILE_MODE, FOLDER_MODE = 0o666, 0o777
"""Before the umask."""
SECRET_FILE_MODE, SECRET_FOLDER_MODE = 0o600, 0o700

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def check_name(name: str, what: str = "name") -> str:
    """Return the name if it is safe for a folder: letters, digits, ``_``, ``-``, ``.``; never ``.`` or ``..``.

    Raises:
        InputError: for any other name.
    """
    if not _SAFE_NAME.fullmatch(name) or name.strip(".") == "" or len(name) > 128:
        raise InputError(
            f"{what} {name!r}: expected 1 to 128 letters, digits, '_', '-' or '.', not only dots; rename it"
        )
    return name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts client_2 before client_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def read_text(path: Path, expected: str, *, name: str | None = None) -> str:
    """The text of a regular UTF-8 file; a byte order mark at its start is dropped.

    Args:
        path: of the file.
        expected: what the file should be, for messages: ``a YAML file``.
        name: of the file in messages; its path if None.

    Raises:
        InputError: if the file is missing, not regular (a FIFO would wait for its writer), not readable or not UTF-8.
    """
    name = name or str(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{name}: cannot be read (not a regular file); expected {expected}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: if `read_text` refuses the file, or it is not JSON.
    """
    text = read_text(path, "a JSON file")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not valid JSON ({reason}); expected the file as it was written") from error


def write_bytes(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write a file completely or not at all: temporary name in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: of the file; missing parent folders are made.
        data: its content.
        secret: only the owner may read it (0600).
    """
    _make_parents(path, secret)
    with _temporary_file(path, data, secret) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


def write_secret(path: Path, data: bytes) -> None:
    """Write a new 0600 file completely or not at all; missing parent folders are made with 0700.

    Nobody else can read the file at any moment.

    Raises:
        FileExistsError: if the path exists. A secret is never replaced.
    """
    _make_parents(path, secret=True)
    with _temporary_file(path, data, secret=True) as temporary:
        os.link(temporary, path)  # unlike a rename, it fails if another process was first
        os.unlink(temporary)
    sync_folder(path.parent)


def check_secret(path: Path, *, name: str | None = None) -> None:
    """Check that a secret is a regular file, or a link to one, which nobody but its owner may read.

    Args:
        path: of the secret.
        name: of the file in messages; its path if None.

    Raises:
        InputError: if it is missing, not a regular file, or others may read it.
    """
    name = name or str(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected a secret's file") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{name}: not a regular file; expected a secret's file")
    if mode & 0o077:
        raise InputError(
            f"{name}: others may read it; expected mode 0600, got {mode & 0o777:04o}; run 'chmod 600 {path}'"
        )


def write_text(path: Path, text: str, *, secret: bool = False) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode(), secret=secret)


def write_json(path: Path, value: Any, *, secret: bool = False) -> None:
    """`write_bytes` of JSON with an indent of 1; keys keep the caller's order.

    Raises:
        ValueError: if a number is NaN or infinite, which JSON cannot express.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", secret=secret)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; without it, a power cut can lose a file whose bytes are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary_folder(path: Path, *, secret: bool = False) -> Iterator[Path]:
    """A folder beside `path` with a temporary name; removed at the end, unless it was renamed.

    Args:
        path: which the folder is meant to become; missing parents are made.
        secret: only the owner may enter it (0700).
    """
    _make_parents(path, secret)
    temporary = _temporary_name(path)
    temporary.mkdir(mode=SECRET_FOLDER_MODE if secret else FOLDER_MODE)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, secret: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` if the block succeeds and is removed if it fails.

    If `path` exists, its files are replaced one by one, each atomically, and those missing in the new folder are
    removed: a reader always finds the folder.

    Args:
        path: of the folder.
        secret: only the owner may enter a new folder (0700).
    """
    with temporary_folder(path, secret=secret) as temporary:
        yield temporary
        files = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
        for file in files:
            _sync_file(temporary / file)
        _sync_folders(temporary)
        if not path.exists():
            os.replace(temporary, path)
            sync_folder(path.parent)
            return
        for file in files:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, path / file)
        for old in [p for p in path.rglob("*") if p.is_file() and p.relative_to(path) not in files]:
            old.unlink()
        _sync_folders(path)


def share_files(folder: Path) -> None:
    """Give everything in a folder that we made the mode which the umask asks for.

    For files from libraries that make them readable by their owner only, as safetensors does.
    """
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & FILE_MODE)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left anywhere under `folder`."""
    for path in [p for p in folder.rglob(".*.tmp") if not p.is_symlink()]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _make_parents(path: Path, secret: bool) -> None:
    if not secret:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.parent.is_dir():  # `mkdir(mode=…, parents=True)` gives the mode to the last folder only
        _make_parents(path.parent, secret)
        path.parent.mkdir(mode=SECRET_FOLDER_MODE, exist_ok=True)


@contextlib.contextmanager
def _temporary_file(path: Path, data: bytes, secret: bool) -> Iterator[Path]:
    """A file beside `path` with these bytes on the disk; removed if the block fails."""
    temporary = _temporary_name(path)
    # O_EXCL: never a file that exists, never through a link. The system applies the umask.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_FILE_MODE if secret else FILE_MODE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folders(folder: Path) -> None:
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync_folder(path)
