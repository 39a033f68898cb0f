"""The rows of a table: the lines of a JSONL file, or a data set, which the library datasets maps into memory."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from fl_lightning.data.record_files import parse_line
from fl_lightning.data.table_index import Integers
from fl_lightning.errors import InputError

LINES, PARQUET = (".jsonl", ".ndjson"), ".parquet"


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
        self.lines = array("q"), array("q"), array("q")
        self._starts: Sequence[int] | Integers
        self._starts, self._lengths, self._numbers = self.lines

    def digest(self) -> bytes:
        """SHA-256 of the file."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while part := self._file.read(2**20):
            digest.update(part)
        self._file.seek(0)
        return digest.digest()

    def status(self) -> tuple[int, int]:
        """Bytes of the file, and when it was last written to, in nanoseconds."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def take(self, lines: Integers) -> None:
        """Take where lines are from an index, in place of `owners`."""
        self._starts, self._lengths, self._numbers = lines

    def owners(self, columns: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
        """(file and line, department, client) of every line."""
        first, second = columns
        start = 0
        starts, lengths, numbers = self.lines
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                location = f"{self._path}:{number}"
                starts.append(start)
                lengths.append(len(line))
                numbers.append(number)
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


def open_table(path: Path) -> Rows:
    """The rows of a JSONL or Parquet file, or of a folder that ``Dataset.save_to_disk`` wrote.

    Raises:
        InputError: if it cannot be read.
    """
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
