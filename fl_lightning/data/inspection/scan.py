"""Every client and every record of a folder of departments, going on after what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_lightning.data.layout import SUFFIX, ClientFiles, client_at, draw_held_out, places_of
from fl_lightning.data.records import Record, scan_records
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, natural_key

IGNORED = ("structure.json", "partition.json", "partition.png", "README.md", "LICENCES.md")
"""Files in the root that are expected there and are no records."""


@dataclass(frozen=True)
class Item:
    """One good record.

    Attributes:
        split: train or eval.
        tokens: its length.
        supervised: how many of its tokens the loss is taken on.
    """

    client_id: str
    split: str
    where: str
    text: str
    prompt: str
    tokens: int
    supervised: int


Measure = Callable[[Record, str], tuple[int, int]]
"""(record, where it stands) to (tokens, supervised tokens); `InputError` where it cannot be tokenised."""


class Scan(Protocol):
    """Takes what is found to be wrong."""

    errors: list[str]
    warnings: list[str]


def find_all(folder: Path, found: Scan) -> list[ClientFiles]:
    """All clients that have a name and files; what is wrong with the others goes into the errors."""
    clients: dict[str, ClientFiles] = {}
    departments: dict[str, Path] = {}
    try:
        places = places_of(folder)
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            if path.suffix in (".jsonl", ".json", ".csv", ".parquet") and path.name not in IGNORED:
                found.warnings.append(f"{path}: ignored, for it is in no department's folder")
    except (InputError, OSError) as error:
        found.errors.append(str(error))
        return []
    for place in places:
        department = place.name.removesuffix(SUFFIX)
        try:
            entries = sorted(place.iterdir(), key=lambda path: natural_key(path.name))
        except OSError as error:
            found.errors.append(f"{place}: cannot be read ({error.strerror}); wanted a folder that may be listed")
            continue
        named = False
        for entry in entries:
            try:
                client = client_at(entry, department)
                if client is None:
                    if not entry.name.startswith("."):
                        found.warnings.append(f"{entry}: ignored, for it is no client: wanted train.jsonl in a folder")
                    continue
                named = True
                if client.client_id in clients:
                    raise InputError(f"{entry}: client {client.client!r} is there twice; keep one of them")
                clients[client.client_id] = client
            except InputError as error:
                found.errors.append(str(error))
        if not named:
            continue
        try:
            check_name(department, f"{place}: department")
            if department in departments:
                raise InputError(f"{place}: department {department!r} has two folders; keep one of them")
            departments[department] = place
        except InputError as error:
            found.errors.append(str(error))
    return list(clients.values())


def read_all(files: ClientFiles, measure: Measure, found: Scan, eval_fraction: float, seed: int) -> Iterable[Item]:
    """The good records of a client; what is wrong with the others goes into the errors."""
    records = {"train": _records(files.train, found)}
    if files.eval is not None:
        records["eval"] = _records(files.eval, found)
    elif len(records["train"]) >= 2:
        chosen = draw_held_out(files, len(records["train"]), eval_fraction, seed)
        records["eval"] = [pair for index, pair in enumerate(records["train"]) if index in chosen]
        records["train"] = [pair for index, pair in enumerate(records["train"]) if index not in chosen]
    elif records["train"]:
        found.errors.append(f"{files.train}: 1 record, wanted at least 2 to hold one out; add records or an eval.jsonl")
    for split, pairs in records.items():
        for where, record in pairs:
            try:
                tokens, supervised = measure(record, where)
            except InputError as error:
                found.errors.append(str(error))
                continue
            prompt = normalised([turn.content for turn in record if not turn.supervised])
            text = normalised([f"{turn.role} {turn.content}" for turn in record])
            yield Item(files.client_id, split, where, text, prompt, tokens, supervised)


def _records(path: Path, found: Scan) -> list[tuple[str, Record]]:
    good, bad = [], 0
    try:
        for where, record in scan_records(path):
            if isinstance(record, InputError):
                found.errors.append(str(record))
                bad += 1
            else:
                good.append((where, record))
    except InputError as error:
        found.errors.append(str(error))
        return []
    if not good and not bad:
        found.errors.append(f"{path}: no records; wanted at least one, or remove the client")
    return good


def normalised(texts: Sequence[str]) -> str:
    r"""Texts as one, without what does not make two of them different.

    Example:
        >>> normalised(["Hello  World", "a\nb "])
        'hello world\na b'
    """
    return "\n".join(" ".join(text.split()).casefold() for text in texts)
