"""One file or data set with all clients' records: two columns say whose record a row is.

A JSONL file is read once for these columns, see `table_index`; the records themselves are read when their client is
needed. Parquet files and Hugging Face data sets on disk are read by the library datasets, which maps them into memory.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.data.lazy_clients import LAZY_ABOVE
from fl_lightning.data.record_files import to_record
from fl_lightning.data.records import Record
from fl_lightning.data.table_index import IndexStore, TableIndex, index_key
from fl_lightning.data.table_rows import JsonLines, Rows, open_table
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name

COLUMNS = ("department", "client")
"""Names of the two columns, unless ``data.columns`` has others."""

MIN_BYTES = 2**18
"""Smaller files are listed as fast as they are looked up."""

_DATA_SET_FILES = ("dataset_info.json", "dataset_dict.json")


class RecordTable:
    """The rows of a table, grouped by client.

    Args:
        rows: of the table.
        path: of the table.
        columns: of the department and of the client.
        store: of indexes; None keeps none.

    Raises:
        InputError: naming the first row that has no department or client, or an unsafe name.
    """

    def __init__(self, rows: Rows, path: Path, columns: Sequence[str], store: IndexStore | None = None) -> None:
        self.rows, self.path, self.columns = rows, path, tuple(columns)
        index = self._index(store)
        self._order, starts = index.order, [0, *index.ends.tolist()]
        self.clients = [TableClient(d, c, self, starts[k], starts[k + 1]) for k, (d, c) in enumerate(index.clients)]

    def _index(self, store: IndexStore | None) -> TableIndex:
        """From the store, or read from the rows and, if there are many clients, put there."""
        rows = self.rows
        if store is None or not isinstance(rows, JsonLines) or rows.status()[0] < MIN_BYTES:
            return self._read_index()
        status = rows.status()
        key = index_key(rows.digest(), self.columns)
        index = store.get(key)
        if index is not None:
            rows.take(index.lines)
            return index
        index = self._read_index()
        if len(index.clients) > LAZY_ABOVE and rows.status() == status:  # nobody has written to it meanwhile
            store.put(key, index)
        return index

    def _read_index(self) -> TableIndex:
        numbers: dict[tuple[str, str], int] = {}
        owners = array("q")
        for location, *names in self.rows.owners(self.columns):
            department, client = (_name(location, c, n) for c, n in zip(self.columns, names, strict=True))
            if (department, client) not in numbers:
                check_name(department, f"{location}: department")
                check_name(client, f"{location}: client")
            owners.append(numbers.setdefault((department, client), len(numbers)))
        lines = self.rows.lines if isinstance(self.rows, JsonLines) else (array("q"),) * 3
        return TableIndex.of(list(numbers), owners, lines)

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


def table_clients(
    path: Path, columns: Sequence[str] = COLUMNS, store: IndexStore | None = None
) -> Mapping[str, list[TableClient]]:
    """{department: clients in natural order}, departments sorted.

    Args:
        path: a JSONL or Parquet file, or a folder that ``Dataset.save_to_disk`` wrote.
        columns: of the department and of the client.
        store: of indexes of JSONL files; None reads the file.

    Raises:
        InputError: if the table cannot be read, or a row has no department or client.
    """
    departments: dict[str, list[TableClient]] = {}
    for client in RecordTable(open_table(path), path, columns, store).clients:
        departments.setdefault(client.department, []).append(client)
    if not departments:
        raise InputError(f"data.root: no records in {path}; expected some")
    return departments


def _name(location: str, column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(
            f"{location}: {column}: expected a name, got {value!r:.60}; data.columns names the two columns"
        )
    return str(value)
