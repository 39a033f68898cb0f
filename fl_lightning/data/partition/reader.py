"""A pile of records from a file, a Hugging Face data set on disk, or one on the Hub."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
WANTED = f"a file ({', '.join(ENDINGS)}), a folder with a Hugging Face data set, or a Hub id"
EXTRA = "pip install 'fl_lightning[data]'"


@dataclass(frozen=True)
class Row:
    """One row and where it stands, for messages."""

    where: str
    values: Mapping[str, Any]


def read_rows(source: str, split: str | None = None) -> list[Row]:
    """All rows of a source, in its order.

    Args:
        source: a JSONL, JSON, CSV, TSV or Parquet file; a folder that ``Dataset.save_to_disk`` wrote, or one of such
            files; or the id of a data set on the Hub.
        split: which one, where there are several; None takes the only one, or the one called train.

    Raises:
        InputError: if it is not there, cannot be read, or has no rows.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):
        rows = _number(source, _from_datasets(str(path), split, on_disk=True))
    elif os.path.exists(path):
        rows = _from_file(path)
    elif path.suffix in ENDINGS or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(f"{source}: not there, wanted {WANTED}")
    else:
        rows = _number(source, _from_datasets(source, split, on_disk=False))
    if not rows:
        raise InputError(f"{source}: no records, wanted at least two")
    return rows


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The names of all columns, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _number(source: str, values: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [Row(f"{source}: record {index}", row) for index, row in enumerate(values)]


def _from_file(path: Path) -> list[Row]:
    if not path.is_file():  # a FIFO would wait for its writer
        raise InputError(f"{path}: cannot be read (not a regular file), wanted {WANTED}")
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: got the ending {path.suffix!r}, wanted one of {', '.join(ENDINGS)}; rename it")
    if path.suffix == ".parquet":
        return _number(str(path), _from_parquet(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); wanted {WANTED}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    if path.suffix == ".json":
        return _from_list(path, text)
    if path.suffix in (".csv", ".tsv"):
        return _from_table(path, text, "\t" if path.suffix == ".tsv" else ",")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [Row(f"{path}:{number}", _object(line, f"{path}:{number}")) for number, line in lines]


def _object(text: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({_reason(error)}); wanted one object a line") from error
    return _mapping(value, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: got {type(value).__name__}, wanted an object with the columns as keys")
    return value


def _from_list(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({_reason(error)}); wanted a list of objects") from error
    if not isinstance(values, list):
        raise InputError(f"{path}: got {type(values).__name__}, wanted a list of objects")
    return [Row(row.where, _mapping(row.values, row.where)) for row in _number(str(path), values)]


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _from_table(path: Path, text: str, separator: str) -> list[Row]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    rows = []
    try:
        for values in reader:
            if None in values or None in values.values():
                wanted = len(reader.fieldnames or ())
                raise InputError(f"{path}:{reader.line_num}: wanted {wanted} cells as in the first line; quote commas")
            rows.append(Row(f"{path}:{reader.line_num}", values))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); wanted quoted cells") from error
    return rows


def _from_parquet(path: Path) -> list[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet wants pyarrow, which is not installed; add it by {EXTRA}") from error
    try:
        rows: list[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]}); wanted one") from error
    return rows


def _from_datasets(source: str, split: str | None, *, on_disk: bool) -> list[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{source}: wants the library datasets, which is not installed; add it by {EXTRA}") from error
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            if on_disk and any(os.path.isfile(Path(source) / name) for name in ("state.json", "dataset_dict.json")):
                found = datasets.load_from_disk(source)
            else:
                found = datasets.load_dataset(source, cache_dir=cache if on_disk else None)
        except Exception as error:  # what broken data make datasets, pyarrow and the Hub's client raise has no end
            offline = " (HF_HUB_OFFLINE=1)" if os.environ.get("HF_HUB_OFFLINE") == "1" and not on_disk else ""
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{source}: cannot be loaded{offline}; wanted {WANTED} ({reason})") from error
        return _plain(_choose(source, found, split))


def _choose(source: str, found: Any, split: str | None) -> Any:
    """The one split that is meant."""
    if not isinstance(found, dict):
        if split is not None:
            raise InputError(f"--split: got {split!r}, but {source} has no splits; leave the option out, wanted none")
        return found
    name = split or (next(iter(found)) if len(found) == 1 else "train")
    if name not in found:
        raise InputError(f"--split: got {split or 'none'}, wanted one of {', '.join(map(str, found))}")
    return found[name]


def _plain(dataset: Any) -> list[Mapping[str, Any]]:
    """Rows as plain values, class numbers as the names they stand for."""
    rows: list[Mapping[str, Any]] = dataset.to_list()
    names = {name: feature.names for name, feature in dataset.features.items() if hasattr(feature, "int2str")}
    if not names:
        return rows
    return [
        {key: names[key][v] if key in names and v is not None and v >= 0 else v for key, v in row.items()}
        for row in rows
    ]
