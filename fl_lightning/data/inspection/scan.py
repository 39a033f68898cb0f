"""Reads every client and every record of a folder of departments, and goes on after errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_lightning.data.client_files import ClientFiles, client_files_at, unread_files
from fl_lightning.data.layout import (
    STRUCTURE,
    SUFFIX,
    check_department_name,
    department_folders,
    true_clusters,
)
from fl_lightning.data.record_files import scan_records
from fl_lightning.data.record_table import COLUMNS, TableClient, is_table, table_clients
from fl_lightning.data.records import Record
from fl_lightning.data.splits import draw_held_out
from fl_lightning.errors import InputError
from fl_lightning.storage.files import natural_key
from fl_lightning.storage.record_digest import record_digest

IGNORED = (STRUCTURE, "partition.json", "partition.png", "README.md", "LICENCES.md")
"""Files in the root that are expected there and hold no records."""


@dataclass(frozen=True)
class ScannedRecord:
    """A valid record.

    Attributes:
        client_id: whose it is.
        split: train or eval.
        location: file and line, or file and index.
        text: all turns, normalized.
        prompt: the turns that are not supervised, normalized.
        tokens: its length.
        supervised: number of tokens that the loss is computed on.
    """

    client_id: str
    split: str
    location: str
    text: str
    prompt: str
    tokens: int
    supervised: int


Measure = Callable[[Record, str], tuple[int, int]]
"""(record, its location) to (tokens, supervised tokens); raises `InputError` if the record cannot be tokenized."""


class Findings(Protocol):
    """Collects errors and warnings."""

    errors: list[str]
    warnings: list[str]
    unread_keys: Counter[str]


def scan_clients(
    root: Path, findings: Findings, columns: Sequence[str] = COLUMNS
) -> Sequence[ClientFiles | TableClient]:
    """All clients with a valid name and with files; errors of the others are added to the findings.

    Args:
        root: a folder of departments, or a table.
        findings: get the errors.
        columns: of the department and of the client in a table.
    """
    if is_table(root):
        try:
            return [client for clients in table_clients(root, columns).values() for client in clients]
        except InputError as error:
            findings.errors.append(str(error))
            return []
    clients: dict[str, ClientFiles] = {}
    departments: set[str] = set()
    try:
        true_clusters(root)
    except InputError as error:
        findings.errors.append(str(error))
    try:
        folders = department_folders(root)
        _warn_of_stray_files(root, findings)
    except (InputError, OSError) as error:
        findings.errors.append(str(error))
        return []
    for folder in folders:
        department = folder.name.removesuffix(SUFFIX)
        if not _scan_department(folder, department, clients, findings):
            continue
        try:
            check_department_name(department, folder)
            if department in departments:
                raise InputError(f"{folder}: department {department!r} has two folders; keep one of them")
            departments.add(department)
        except InputError as error:
            findings.errors.append(str(error))
    return list(clients.values())


def _warn_of_stray_files(root: Path, findings: Findings) -> None:
    for path in sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")):
        if path.suffix in (".jsonl", ".json", ".csv", ".parquet") and path.name not in IGNORED:
            findings.warnings.append(f"{path}: ignored, because it is not in a department's folder")


def _scan_department(folder: Path, department: str, clients: dict[str, ClientFiles], findings: Findings) -> bool:
    """Add a folder's clients; whether it has anything that is, or tries to be, a client."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    except OSError as error:
        findings.errors.append(f"{folder}: cannot be read ({error.strerror}); expected a folder that may be listed")
        return False
    is_department = False
    for entry in entries:
        try:
            client = client_files_at(entry, department)
            if client is None:
                if not entry.name.startswith("."):
                    findings.warnings.append(
                        f"{entry}: ignored; a client is a file of records, or a folder with train.jsonl"
                    )
                continue
            is_department = True
            if client.client_id in clients:
                raise InputError(f"{entry}: client {client.client!r} is there twice; keep one of them")
            clients[client.client_id] = client
        except InputError as error:
            findings.errors.append(str(error))
    return is_department


def scan_client(
    files: ClientFiles | TableClient,
    measure: Measure,
    findings: Findings,
    eval_fraction: float,
    seed: int,
    exclude_records: Collection[str] = (),
) -> Iterator[ScannedRecord]:
    """The valid records of a client that are not left out; errors of the others are added to the findings."""
    if isinstance(files, TableClient):
        splits, unread = {"train": _valid_records(files.scan(), findings)}, []
    else:
        splits, unread = {"train": _valid_records(scan_records(files.train), findings)}, unread_files(files)
    if isinstance(files, ClientFiles) and files.eval is not None:
        splits["eval"] = _valid_records(scan_records(files.eval), findings)
    if exclude_records:
        splits = {
            split: [(where, r) for where, r in pairs if record_digest(r.value) not in exclude_records]
            for split, pairs in splits.items()
        }
    if "eval" not in splits and len(splits["train"]) >= 2:
        records = splits["train"]
        held_out = draw_held_out(len(records), files.department, files.client, eval_fraction, seed)
        splits["eval"] = [pair for index, pair in enumerate(records) if index in held_out]
        splits["train"] = [pair for index, pair in enumerate(records) if index not in held_out]
    if not splits["train"]:
        findings.warnings.append(f"{files.training_location}: no valid training records; fit leaves the client out")
    elif not splits.get("eval"):
        findings.warnings.append(f"{files.held_out_location}: no held-out records; fit trains the client unevaluated")
    findings.warnings += [
        f"{path}: not read, beside train.jsonl and its held-out file; call it eval.jsonl to evaluate on it"
        for path in unread
    ]
    for split, pairs in splits.items():
        for location, record in pairs:
            try:
                tokens, supervised = measure(record, location)
            except InputError as error:
                findings.errors.append(str(error))
                continue
            findings.unread_keys.update(record.unread_keys)
            prompt = normalize_text([turn.content for turn in record if not turn.supervised])
            text = normalize_text(
                [f"{t.role} {t.content} {json.dumps(t.tool_calls) if t.tool_calls else ''}" for t in record]
            )
            yield ScannedRecord(files.client_id, split, location, text, prompt, tokens, supervised)


def _valid_records(scanned: Iterable[tuple[str, Record | InputError]], findings: Findings) -> list[tuple[str, Record]]:
    """(location, record) of those that are records; errors are added to the findings."""
    records = []
    try:
        for location, record in scanned:
            if isinstance(record, InputError):
                findings.errors.append(str(record))
            else:
                records.append((location, record))
    except InputError as error:
        findings.errors.append(str(error))
    return records


def normalize_text(texts: Sequence[str]) -> str:
    r"""Texts as one text, without differences in white space and case.

    Example:
        >>> normalize_text(["Hello  World", "a\nb "])
        'hello world\na b'
    """
    return "\n".join(" ".join(text.split()).casefold() for text in texts)
