"""Columns of a source to records that `fit` reads, and values to names of folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fl_lightning.data.partition.reader import Row, column_names
from fl_lightning.data.record_forms import FORMS, INSTRUCTION_KEYS, PROMPT_KEYS, parse_record
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name
from fl_lightning.storage.run_adapters import BASE

KEYS = ("messages", "conversations", *dict.fromkeys((*INSTRUCTION_KEYS, *PROMPT_KEYS)), "text")
"""Keys of a record, see `fl_lightning.data.record_forms`."""


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


def to_records(rows: Sequence[Row], columns: Mapping[str, str], dealt_by: Collection[str] = ()) -> list[dict[str, Any]]:
    """The record of each row, with only the keys that `fit` reads.

    Args:
        rows: of a source.
        columns: {key of a record: column}; if empty, columns with the names of the keys.
        dealt_by: columns that say whose a record is; they are no part of it.

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
            record = {key: value for key, value in row.values.items() if key not in dealt_by}
        record = {key: _messages(value) for key, value in record.items() if value is not None}
        try:
            unread = parse_record(record).unread_keys
        except ValueError as error:
            hint = (
                ""
                if columns or record.keys() & set(KEYS)
                else f"; expected columns of {FORMS}, or options such as --prompt, --instruction, --text"
            )
            raise InputError(f"{row.location}: {error}{hint}") from error
        records.append({key: value for key, value in record.items() if key in KEYS and key not in unread})
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
        if name == BASE and option == "--by":
            raise InputError(f"{option}: a department cannot be called {BASE!r}, as the base model is; rename it")
        if clash := next((other for other, taken in names.items() if taken.lower() == name.lower()), None):
            raise InputError(f"{option}: {clash!r} and {value!r} would share the folder {name!r}; rename one of them")
        names[value] = name
    return names
