"""One file or data set with all clients' records: two columns say whose record a row is.

A JSONL file is read once for these columns; the records themselves are read when their client is needed. Parquet files
and Hugging Face data sets on disk are read by the library datasets, which maps them into memory.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fl_lightning.data.record_files import parse_line, to_record
from fl_lightning.data.records import Record
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, natural_key

COLUMNS = ("department", "client")
"""Names of the two columns, unless ``data.columns`` has others."""

LINES, PARQUET = (".jsonl", ".ndjson"), ".parquet"
_DATA_SET_FILES = ("dataset_info.json", "dataset_dict.json")


class Rows(Protocol):
    """The rows of a table, by number."""

    def owners(self, columns: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
        """(location, department, client) of every row."""
        ...

    def raw(self, number: int) -> bytes:
        """The bytes of a row."""
        ...

    def value(self, number: int) -> tuple[str, dict[str, Any]]:
        """(location, {column: value}) of a row."""
        ...


class JsonLines:
    """The lines of a JSONL file, blank ones left out."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("rb")
        self._starts, self._lengths, self._numbers = array("q"), array("q"), array("q")

    def owners(self, columns: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
        """(file and line, department, client) of every line."""
        first, second = columns
        start = 0
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                location = f"{self._path}:{number}"
                self._starts.append(start)
                self._lengths.append(len(line))
                self._numbers.append(number)
                try:
                    value = json.loads(line)  # faster than `parse_line`, which checks and explains more
                except ValueError:
                    value = None
                if not isinstance(value, dict):
                    value = parse_line(location, _decode(location, line))
                yield location, value.get(first), value.get(second)
            start += len(line)

    def raw(self, number: int) -> bytes:
        """A line."""
        return os.pread(self._file.fileno(), self._lengths[number], self._starts[number])

    def value(self, number: int) -> tuple[str, dict[str, Any]]:
        """(file and line, the object in a line)."""
        location = f"{self._path}:{self._numbers[number]}"
        return location, parse_line(location, _decode(location, self.raw(number)))


class DataSetRows:
    """The rows of a Hugging Face data set."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path, self._dataset = path, dataset
        self._names = {name: f.names for name, f in dataset.features.items() if hasattr(f, "int2str")}

    def owners(self, columns: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
        """(source and index, department, client) of every row."""
        if missing := [name for name in columns if name not in self._dataset.column_names]:
            found = ", ".join(self._dataset.column_names)
            raise InputError(f"data.columns: expected columns of {self._path} ({found}), got {missing[0]!r}")
        pairs = self._dataset.select_columns(list(dict.fromkeys(columns)))
        number = 0
        for batch in pairs.iter(batch_size=10_000):
            for owner in zip(*(self._named(name, batch[name]) for name in columns), strict=True):
                yield (f"{self._path}: record {number}", *owner)
                number += 1

    def _named(self, column: str, values: list[Any]) -> list[Any]:
        """Class names instead of class numbers."""
        names = self._names.get(column)
        return values if names is None else [names[v] if v is not None and v >= 0 else v for v in values]

    def raw(self, number: int) -> bytes:
        """A row as JSON."""
        return json.dumps(self._dataset[number], sort_keys=True, default=str).encode()

    def value(self, number: int) -> tuple[str, dict[str, Any]]:
        """(source and index, {column: value})."""
        row = {name: self._named(name, [value])[0] for name, value in self._dataset[number].items()}
        return f"{self._path}: record {number}", row


class RecordTable:
    """The rows of a table, grouped by client.

    Args:
        rows: of the table.
        path: of the table.
        columns: of the department and of the client.

    Raises:
        InputError: naming the first row that has no department or client, or an unsafe name.
    """

    def __init__(self, rows: Rows, path: Path, columns: Sequence[str]) -> None:
        self.rows, self.path, self.columns = rows, path, tuple(columns)
        numbers: dict[tuple[str, str], int] = {}
        owners = array("q")
        for location, *names in rows.owners(columns):
            department, client = (_name(location, c, n) for c, n in zip(columns, names, strict=True))
            if (department, client) not in numbers:
                check_name(department, f"{location}: department")
                check_name(client, f"{location}: client")
            owners.append(numbers.setdefault((department, client), len(numbers)))
        order = np.argsort(np.frombuffer(owners, np.int64), kind="stable") if owners else np.zeros(0, np.int64)
        ends = np.cumsum(np.bincount(np.frombuffer(owners, np.int64))) if owners else order
        self._order: npt.NDArray[np.int64] = order
        starts = [0, *ends.tolist()]
        self.clients = [TableClient(d, c, self, starts[k], starts[k + 1]) for (d, c), k in numbers.items()]

    def numbers(self, start: int, stop: int) -> list[int]:
        """The numbers of a client's rows, in the order of the table."""
        numbers: list[int] = self._order[start:stop].tolist()
        return numbers


@dataclass(frozen=True, slots=True, eq=False)
class TableClient:
    """One client's rows of a table."""

    department: str
    client: str
    table: RecordTable
    start: int
    stop: int

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"

    @property
    def training_location(self) -> str:
        """The table and the client."""
        return f"{self.table.path}: {self.client_id}"

    @property
    def held_out_location(self) -> str:
        """The table and the client."""
        return self.training_location

    def contents(self) -> list[bytes | None]:
        """The bytes of its rows; held-out records are not set apart."""
        rows = self.table.rows
        return [*(rows.raw(number) for number in self.table.numbers(self.start, self.stop)), None]

    def scan(self) -> Iterator[tuple[str, Record | InputError]]:
        """(location, the record or its error) of each of its rows."""
        for number in self.table.numbers(self.start, self.stop):
            location, value = self.table.rows.value(number)
            try:
                yield location, to_record(location, {n: v for n, v in value.items() if n not in self.table.columns})
            except InputError as error:
                yield location, error

    def training_records(self) -> list[Record]:
        """All its records.

        Raises:
            InputError: naming the row that is none.
        """
        records = []
        for _, record in self.scan():
            if isinstance(record, InputError):
                raise record
            records.append(record)
        return records

    def held_out_records(self) -> None:
        """None: held-out records are drawn."""
        return


def is_table(path: Path) -> bool:
    """Whether a path is a file, or a folder with a Hugging Face data set."""
    return os.path.isfile(path) or any(os.path.isfile(path / name) for name in _DATA_SET_FILES)


def table_clients(path: Path, columns: Sequence[str] = COLUMNS) -> Mapping[str, list[TableClient]]:
    """{department: clients in natural order}, departments sorted.

    Args:
        path: a JSONL or Parquet file, or a folder that ``Dataset.save_to_disk`` wrote.
        columns: of the department and of the client.

    Raises:
        InputError: if the table cannot be read, or a row has no department or client.
    """
    departments: dict[str, list[TableClient]] = {}
    for client in RecordTable(_rows(path), path, columns).clients:
        departments.setdefault(client.department, []).append(client)
    if not departments:
        raise InputError(f"data.root: no records in {path}; expected some")
    return {name: sorted(departments[name], key=lambda c: natural_key(c.client)) for name in sorted(departments)}


def _rows(path: Path) -> Rows:
    if os.path.isfile(path) and path.suffix in LINES:
        try:
            return JsonLines(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSONL file") from error
    if os.path.isfile(path) and path.suffix != PARQUET:
        raise InputError(
            "data.root: expected a folder of departments, a JSONL or Parquet file, or a Hugging Face data set on disk, "
            f"got {path}; the command partition makes a folder of JSON, CSV and TSV files"
        )
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{path}: needs the library datasets, which is not installed; install it with pip install "
            "'fl_lightning[data]', or save the records as JSONL"
        ) from error
    try:
        if path.suffix == PARQUET:
            return DataSetRows(path, datasets.Dataset.from_parquet(str(path)))
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise anything for broken data
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); expected a Parquet file or a data set on disk") from error
    if isinstance(loaded, dict):
        if "train" not in loaded:
            raise InputError(f"{path}: expected a split train, got {', '.join(loaded)}; save one split alone")
        loaded = loaded["train"]
    return DataSetRows(path, loaded)


def _decode(location: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not UTF-8 (byte {error.start} of the line); save the file as UTF-8") from error


def _name(location: str, column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(
            f"{location}: {column}: expected a name, got {value!r:.60}; data.columns names the two columns"
        )
    return str(value)
