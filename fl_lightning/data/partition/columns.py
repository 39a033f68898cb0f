"""Columns of a source to records that `fit` reads, and values to names of folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.data.partition.reader import Row, column_names
from fl_lightning.data.records import FORMS, parse_record
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name

KEYS = ("messages", "instruction", "input", "output", "response", "prompt", "completion", "text")
"""Keys of a record, see `fl_lightning.data.records`."""


def check_columns(rows: Sequence[Row], columns: Mapping[str, str | None]) -> None:
    """Check that columns exist.

    Args:
        rows: of a source.
        columns: {option: column}; None if the option was not given.

    Raises:
        InputError: naming the option, the missing column and those that exist.
    """
    known = column_names(rows)
    for option, column in columns.items():
        if column is not None and column not in known:
            hint = nearest(column, known) or f"; it has {', '.join(known)[:200]}"
            raise InputError(f"{option}: expected a column of the source, got {column!r}{hint}")


def to_records(rows: Sequence[Row], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The record of each row, with only the keys that `fit` reads.

    Args:
        rows: of a source.
        columns: {key of a record: column}; if empty, columns with the names of the keys.

    Raises:
        InputError: naming the row that is not a record.

    Example:
        >>> row = Row("a.csv:2", {"question": "1 + 1", "answer": 2})
        >>> to_records([row], {"prompt": "question", "completion": "answer"})
        [{'prompt': '1 + 1', 'completion': '2'}]
    """
    records = []
    for row in rows:
        if columns:
            record = {key: _as_text(row.values.get(column)) for key, column in columns.items()}
        else:
            record = {key: row.values.get(key) for key in KEYS}
        record = {key: _messages(v) if key == "messages" else v for key, v in record.items() if v is not None}
        if "messages" in record:
            record = {"messages": record["messages"]}
        try:
            parse_record(record)
        except ValueError as error:
            hint = (
                ""
                if columns or record
                else f"; expected columns of {FORMS}, or options such as --prompt, --instruction, --text"
            )
            raise InputError(f"{row.location}: {error}{hint}") from error
        records.append(record)
    return records


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _messages(value: Any) -> Any:
    """Messages without the empty fields that a table adds to every row."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in value]


def values_of(rows: Sequence[Row], column: str, option: str) -> list[str]:
    """A column as text, one value per row.

    Raises:
        InputError: naming the row without one.
    """
    values = []
    for row in rows:
        value = row.values.get(column)
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            raise InputError(
                f"{row.location}: {column!r}: expected a value for {option}, got {value!r:.40}; fill it in or remove it"
            )
        values.append(str(value).strip())
    return values


def folder_names(values: Sequence[str], option: str) -> dict[str, str]:
    """{value: a name for its folder}: characters that are not allowed become ``_``.

    Raises:
        InputError: if two values get the same name, or nothing is left of one.

    Example:
        >>> folder_names(["Customer support", "HR"], "--by")
        {'Customer support': 'Customer_support', 'HR': 'HR'}
    """
    names: dict[str, str] = {}
    for value in sorted(set(values)):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", value)[:128]
        name = "_" + name.lstrip(".") if name.startswith((".", "__")) else name
        check_name(name, f"{option}: {value!r} as a folder")
        if name.strip("_") == "":
            raise InputError(
                f"{option}: {value!r} has no letter that a folder's name may have; rename it in the source"
            )
        if clash := next((other for other, taken in names.items() if taken.lower() == name.lower()), None):
            raise InputError(f"{option}: {clash!r} and {value!r} would share the folder {name!r}; rename one of them")
        names[value] = name
    return names
