"""Digests: of every file in a folder, in its ``manifest.json``, and of a block of bytes, in front of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, read_json, write_json

MANIFEST = "manifest.json"
DIGEST_SIZE = hashlib.sha256().digest_size
FileDigest: TypeAlias = dict[str, Any]
"""{"bytes", "sha256"} of a file."""


def write_manifest(folder: Path, known: Mapping[str, FileDigest] | None = None) -> None:
    """Write the size and SHA-256 of every file in a folder to its ``manifest.json``.

    Args:
        folder: of the files.
        known: {path in the folder: digest} of files that need not be read.
    """
    known = known or {}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    names = {p.relative_to(folder).as_posix(): p for p in files}
    write_json(folder / MANIFEST, {name: known.get(name) or size_and_digest(p) for name, p in names.items()})


def check_manifest(folder: Path) -> Collection[str]:
    """Check that the files of a folder are as its manifest says.

    Returns:
        The names of the files in the manifest.

    Raises:
        InputError: naming the first file that is missing or has changed.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected {{file: {{bytes, sha256}}}}, got {type(manifest).__name__}")
    for name, expected in manifest.items():
        file = folder.joinpath(*(check_name(part, f"{path}: file") for part in name.split("/")))
        if not file.is_file():
            raise InputError(f"{file}: missing, but {MANIFEST} names it")
        if (actual := size_and_digest(file)) != expected:
            raise InputError(f"{file}: expected {expected} by {MANIFEST}, got {actual}")
    return manifest.keys()


def with_digest(data: bytes) -> bytes:
    """The data with its SHA-256 in front."""
    return hashlib.sha256(data).digest() + data


def without_digest(data: bytes) -> bytes:
    """The data that `with_digest` was given.

    Raises:
        ValueError: if it has changed.
    """
    if hashlib.sha256(data[DIGEST_SIZE:]).digest() != data[:DIGEST_SIZE]:
        raise ValueError(f"the SHA-256 of the {len(data)} bytes is not the one in front of them")
    return data[DIGEST_SIZE:]


def size_and_digest(path: Path) -> FileDigest:
    """The entry of a file in a manifest: ``bytes`` and ``sha256``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
