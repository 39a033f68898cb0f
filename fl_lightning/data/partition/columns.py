"""Columns of a source into records that `fit` reads, and values into names of folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.data.partition.reader import Row, columns_of
from fl_lightning.data.records import FORMS, parse_record
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name

KEYS = ("messages", "instruction", "input", "output", "response", "prompt", "completion", "text")
"""What a record may have, see `fl_lightning.data.records`."""


def check_columns(rows: Sequence[Row], wanted: Mapping[str, str | None]) -> None:
    """Check that columns are there.

    Args:
        rows: of a source.
        wanted: {option: column}; None where the option was not given.

    Raises:
        InputError: naming the option, what was got and what there is.
    """
    known = columns_of(rows)
    for option, column in wanted.items():
        if column is not None and column not in known:
            hint = nearest(column, known) or f"; there are {', '.join(known)[:200]}"
            raise InputError(f"{option}: got {column!r}, wanted a column of the source{hint}")


def to_records(rows: Sequence[Row], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The record of each row, with nothing but what `fit` reads.

    Args:
        rows: of a source.
        columns: {key of a record: column}; empty takes the columns that are called as the keys.

    Raises:
        InputError: naming the row that makes no record.

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
                else f"; wanted columns of {FORMS}, or --prompt, --instruction, --text and so on"
            )
            raise InputError(f"{row.where}: {error}{hint}") from error
        records.append(record)
    return records


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _messages(value: Any) -> Any:
    """Messages without the empty fields that a table gives to all rows alike."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in value]


def values_of(rows: Sequence[Row], column: str, option: str) -> list[str]:
    """A column as text, one value a row.

    Raises:
        InputError: naming the row without one.
    """
    found = []
    for row in rows:
        value = row.values.get(column)
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            raise InputError(
                f"{row.where}: {column!r} is {value!r:.40}, wanted a value for {option}; fill it in or remove it"
            )
        found.append(str(value).strip())
    return found


def folder_names(values: Sequence[str], option: str) -> dict[str, str]:
    """{value: a name for its folder}: what no folder may have becomes ``_``.

    Raises:
        InputError: if two values get one name, or one is left without any.

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
