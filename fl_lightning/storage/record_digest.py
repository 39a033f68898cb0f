"""The digest of a record, by which it can be named without repeating its text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_text

_DIGEST = re.compile(r"[0-9a-f]{64}")


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's JSON in UTF-8: keys sorted, no white space, top-level nulls left out; hexadecimal.

    Args:
        record: the JSON object as it is in the data; of a row of a table, without the columns of department and client.

    Example:
        >>> record_digest({"text": "a"}) == record_digest({"system": None, "text": "a"})
        True
    """
    values = {name: value for name, value in record.items() if value is not None}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_digest(text: object) -> bool:
    """Whether a value is what `record_digest` returns."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def read_digests(path: Path) -> list[str]:
    """The digests of the records that a file lists: each line a record as it is in the data, or its digest.

    Args:
        path: of the file; blank lines are skipped.

    Returns:
        Sorted, each once.

    Raises:
        InputError: naming file and line, or if the file lists nothing.
    """
    digests = set()
    for number, line in enumerate(read_text(path, "a file of records or of their digests").split("\n"), start=1):
        text = line.strip()
        if not text:
            continue
        try:
            value = text if is_digest(text) else json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            digests.add(record_digest(value))
        elif isinstance(value, str) and is_digest(value):
            digests.add(value)
        else:
            raise InputError(
                f"{path}:{number}: expected a record's JSON object or its digest of 64 hexadecimal digits, got "
                f"{text[:40]!r}"
            )
    if not digests:
        raise InputError(f"{path}: expected at least one record, got none")
    return sorted(digests)
