"""Records to partition: from a file, a Hugging Face data set on disk, or one on the Hub."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.data.record_files import scan_values
from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_text

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
EXPECTED = f"a file ({', '.join(ENDINGS)}), a folder with a Hugging Face data set, or a Hub id"
EXTRA = "pip install 'fl_lightning[data]'"


@dataclass(frozen=True)
class Row:
    """One row, with its location (file and line, or source and index) for messages."""

    location: str
    values: Mapping[str, Any]


def read_rows(source: str, split: str | None = None) -> list[Row]:
    """All rows of a source, in its order.

    Args:
        source: a JSONL, JSON, CSV, TSV or Parquet file; a folder that ``Dataset.save_to_disk`` wrote, or a folder of
            such files; or the id of a data set on the Hub.
        split: name of a split; None takes the only one, or ``train`` if there are several.

    Raises:
        InputError: if the source does not exist, cannot be read, or has no rows.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):
        rows = _number(source, _from_datasets(str(path), split, on_disk=True))
    elif os.path.exists(path):
        rows = _from_file(path)
    elif path.suffix in ENDINGS or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(f"{source}: does not exist; expected {EXPECTED}")
    else:
        rows = _number(source, _from_datasets(source, split, on_disk=False))
    if not rows:
        raise InputError(f"{source}: expected at least two records, got none")
    return rows


def column_names(rows: Iterable[Row]) -> list[str]:
    """The names of all columns, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _number(source: str, values: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [Row(f"{source}: record {index}", row) for index, row in enumerate(values)]


def _from_file(path: Path) -> list[Row]:
    if not path.is_file():  # a FIFO would wait for its writer
        raise InputError(f"{path}: cannot be read (not a regular file); expected {EXPECTED}")
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: expected one of the endings {', '.join(ENDINGS)}, got {path.suffix!r}; rename it")
    if path.suffix == ".parquet":
        return _number(str(path), _from_parquet(path))
    if path.suffix in (".csv", ".tsv"):
        return _from_table(path, read_text(path, EXPECTED), "\t" if path.suffix == ".tsv" else ",")
    return [Row(location, _columns(location, value)) for location, value in scan_values(path)]


def _columns(location: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, InputError):
        raise value
    if not isinstance(value, dict):
        raise InputError(f"{location}: expected an object with the columns as keys, got {type(value).__name__}")
    return value


def _from_table(path: Path, text: str, separator: str) -> list[Row]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    rows = []
    try:
        for values in reader:
            if None in values or None in values.values():
                count = len(reader.fieldnames or ())
                raise InputError(f"{path}:{reader.line_num}: expected {count} cells as in the first line; quote commas")
            rows.append(Row(f"{path}:{reader.line_num}", values))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); expected quoted cells") from error
    return rows


def _from_parquet(path: Path) -> list[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files need pyarrow, which is not installed; install it with {EXTRA}"
        ) from error
    try:
        rows: list[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]}); expected one") from error
    return rows


def _from_datasets(source: str, split: str | None, *, on_disk: bool) -> list[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{source}: needs the library datasets, which is not installed; install it with {EXTRA}"
        ) from error
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            if on_disk and any(os.path.isfile(Path(source) / name) for name in ("state.json", "dataset_dict.json")):
                loaded = datasets.load_from_disk(source)
            else:
                loaded = datasets.load_dataset(source, cache_dir=cache if on_disk else None)
        except Exception as error:  # datasets, pyarrow and the Hub's client raise anything for broken data
            offline = " (HF_HUB_OFFLINE=1)" if os.environ.get("HF_HUB_OFFLINE") == "1" and not on_disk else ""
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{source}: cannot be loaded{offline}; expected {EXPECTED} ({reason})") from error
        return _to_rows(_choose_split(source, loaded, split))


def _choose_split(source: str, loaded: Any, split: str | None) -> Any:
    """The data set of the split, or the data set itself if it has no splits."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise InputError(f"--split: {source} has no splits, got {split!r}; leave the option out")
        return loaded
    name = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if name not in loaded:
        raise InputError(f"--split: expected one of {', '.join(map(str, loaded))}, got {split or 'none'}")
    return loaded[name]


def _to_rows(dataset: Any) -> list[Mapping[str, Any]]:
    """Rows as plain values; class numbers become class names."""
    rows: list[Mapping[str, Any]] = dataset.to_list()
    names = {name: feature.names for name, feature in dataset.features.items() if hasattr(feature, "int2str")}
    if not names:
        return rows
    return [
        {key: names[key][v] if key in names and v is not None and v >= 0 else v for key, v in row.items()}
        for row in rows
    ]
