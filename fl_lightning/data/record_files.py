"""JSONL and JSON files of records, with file and line of everything in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_lightning.data.record_forms import FORMS, parse_record
from fl_lightning.data.records import Record
from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_text


def read_records(path: Path, *, may_be_empty: bool = False) -> list[Record]:
    """All records of a ``.jsonl`` (one object per line) or ``.json`` (a list of objects) file, in file order.

    Blank lines are skipped.

    Args:
        path: of the file.
        may_be_empty: whether no record at all is accepted.

    Raises:
        InputError: naming file and line (or index), for anything that is not a record, or if there is none.
    """
    records = []
    for _, record in scan_records(path):
        if isinstance(record, InputError):
            raise record
        records.append(record)
    if not records and not may_be_empty:
        raise InputError(f"{path}: no records; expected at least one of {FORMS}, or remove the client")
    return records


def scan_records(path: Path) -> Iterator[tuple[str, Record | InputError]]:
    """(file and line or index, the record or its error) of everything in a file, in file order.

    Raises:
        InputError: if the file as a whole cannot be read.
    """
    for location, value in scan_values(path):
        if isinstance(value, InputError):
            yield location, value
            continue
        try:
            yield location, to_record(location, value)
        except InputError as error:
            yield location, error


def to_record(location: str, value: object) -> Record:
    """The record in a JSON value.

    Raises:
        InputError: if it is none, with the location.
    """
    try:
        record = parse_record(value)
    except ValueError as error:
        raise InputError(f"{location}: {error}") from error
    record.location, record.value = location, value  # type: ignore[assignment]  # a record is an object
    return record


def scan_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line or index, the JSON value or an `InputError`) of everything in a file, in file order.

    Args:
        path: ``.json`` is one list of values; any other ending is one value per line, and blank lines are skipped.

    Raises:
        InputError: if the file as a whole cannot be read.
    """
    text = read_text(path, "a file of records")
    return _scan_list(path, text) if path.suffix == ".json" else _scan_lines(path, text)


def parse_line(location: str, line: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        InputError: if it is none, with the location.
    """
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{location}: not valid JSON ({_reason(error)}); expected one record per line") from error
    if not isinstance(value, dict):
        raise InputError(f"{location}: expected an object, got {type(value).__name__}")
    return value


def _scan_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        location = f"{path}:{number}"
        try:
            yield location, json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            yield location, InputError(f"{location}: not valid JSON ({_reason(error)}); expected one record per line")


def _scan_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: not valid JSON ({_reason(error)}); expected a list of records") from error
    if not isinstance(values, list):
        raise InputError(f"{path}: expected a list of records, got {type(values).__name__}")
    return ((f"{path}: record {index}", value) for index, value in enumerate(values))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys may not repeat: `json` would keep the last value without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {key!a:.60} twice in one object")
    return value


def _reason(error: Exception) -> str:
    """Why a text is not JSON, without the line of `json`'s own message, which is not the line of the file."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
