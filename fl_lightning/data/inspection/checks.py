"""Counts, lengths, duplicates and leaks of the records in a folder of departments.

Two records are equal if their turns are, ignoring case and the amount of white space. A held-out record leaks if any
client trains on an equal record, or on a record with the same prompt.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from fl_lightning import bundled
from fl_lightning.data.exclusion import check_names_exist, check_records_exist, find_records, is_excluded
from fl_lightning.data.inspection.scan import Measure, ScannedRecord, scan_client, scan_clients
from fl_lightning.data.record_keys import describe_unread_keys
from fl_lightning.data.record_table import COLUMNS, is_table
from fl_lightning.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenLengths:
    """Numbers of tokens of some records."""

    mean: float
    median: float
    longest: int
    supervised: float
    """Share of the tokens that the loss is computed on."""
    cut: int
    """Records longer than ``data.max_length``."""


@dataclass(frozen=True)
class ClientSummary:
    """Counts of one client's records.

    Attributes:
        duplicates: training records that the client has more than once.
        elsewhere: training records that another client trains on as well.
        leaks: held-out records that a client trains on, this one or another.
        prompt_leaks: held-out records of which only the prompt is trained on, with a different response.
    """

    client_id: str
    train: int
    eval: int
    lengths: TokenLengths | None
    duplicates: int
    elsewhere: int
    leaks: int
    prompt_leaks: int


@dataclass
class Inspection:
    """Result of an inspection; its fields are the keys of ``inspect --json``."""

    root: str
    folder: str
    """The root as in messages."""
    clients: list[ClientSummary] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Problems that `fit` would refuse, each naming file and line."""
    warnings: list[str] = field(default_factory=list)
    """Facts that do not stop `fit`, but deserve a look."""
    unread_keys: Counter[str] = field(default_factory=Counter)
    """{key that is not read: number of records}."""
    leaks: list[dict[str, Any]] = field(default_factory=list)
    """{eval: location, train: [location], what: record or prompt}."""
    excluded: list[str] = field(default_factory=list)
    """Clients that data.exclude leaves out."""
    excluded_records: int = 0
    """Records that data.exclude_records leaves out."""
    canaries: int = 0
    """Canaries for each client, of which `fit` adds about half to the training records (audit.canaries)."""
    duplicates: list[list[str]] = field(default_factory=list)
    """Locations of each training record that occurs several times."""

    def as_json(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def inspect_folder(
    root: str | Path,
    measure: Measure,
    *,
    max_length: int = 512,
    eval_fraction: float = 0.2,
    seed: int = 0,
    columns: Sequence[str] = COLUMNS,
    exclude: Collection[str] = (),
    exclude_records: Collection[str] = (),
) -> Inspection:
    """Inspect every file of every client.

    Args:
        root: the folder, ``bundled:departments``, or a table.
        measure: counts a record's tokens.
        max_length: records with more tokens are counted as cut.
        eval_fraction: share held out if a client is a single file.
        seed: the run seed, for that draw.
        columns: of the department and of the client in a table.
        exclude: clients and departments to leave out.
        exclude_records: digests of records to leave out.

    Raises:
        InputError: if the root is not a folder or a file; problems inside it are in `Inspection.errors`.
    """
    folder = bundled.resolve(str(root))
    if not os.path.isdir(folder) and not is_table(folder):
        raise InputError(f"--data: {root} is not a folder; expected a folder of departments")
    inspection = Inspection(str(root), str(folder))
    everybody = scan_clients(folder, inspection, columns)
    clients = [client for client in everybody if not is_excluded(client.client_id, exclude)]
    inspection.excluded = [client.client_id for client in everybody if is_excluded(client.client_id, exclude)]
    if not clients and not inspection.errors:
        inspection.errors.append(f"{root}: no department; expected <department>/<client>/train.jsonl")
    gone = frozenset(exclude_records)
    records = [r for files in clients for r in scan_client(files, measure, inspection, eval_fraction, seed, gone)]
    by_client = _group(records, lambda record: record.client_id)
    training = [record for record in records if record.split == "train"]
    by_text = _group(training, lambda record: record.text)
    by_prompt = _group((record for record in training if record.prompt), lambda record: record.prompt)
    inspection.duplicates = [[record.location for record in equal] for equal in by_text.values() if len(equal) > 1]
    for files in clients:
        summary = _summarize(files.client_id, by_client.get(files.client_id, ()), by_text, by_prompt, max_length)
        inspection.clients.append(summary[0])
        inspection.leaks += summary[1]
    if not inspection.errors:
        inspection.errors += _departments_without_records(inspection)
    if not inspection.errors and (exclude or gone):
        try:
            check_names_exist(exclude, [client.client_id for client in everybody], root)
            if gone:
                owners = find_records(everybody, gone)
                check_records_exist(sorted(gone), owners, root)
                inspection.excluded_records = sum(map(len, owners.values()))
        except InputError as error:
            inspection.errors.append(str(error))
    _warn(inspection, max_length)
    return inspection


def _departments_without_records(inspection: Inspection) -> list[str]:
    departments = _group(inspection.clients, lambda client: client.client_id.split("/")[0])
    return [
        f"{inspection.folder}/{department}: expected {what} records in some client of the department, got none"
        for department, clients in departments.items()
        for what, split in (("training", "train"), ("held-out", "eval"))
        if not any(getattr(client, split) for client in clients)
    ]


def _group(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _summarize(
    client_id: str,
    records: Sequence[ScannedRecord],
    by_text: Mapping[str, list[ScannedRecord]],
    by_prompt: Mapping[str, list[ScannedRecord]],
    max_length: int,
) -> tuple[ClientSummary, list[dict[str, Any]]]:
    """A client's summary and its leaks, from all clients' training records by text and by prompt."""
    train = [record for record in records if record.split == "train"]
    held_out = [record for record in records if record.split == "eval"]
    leaks: list[dict[str, Any]] = []
    for record in held_out:
        for what, equal in (("record", by_text.get(record.text)), ("prompt", by_prompt.get(record.prompt))):
            if equal:
                leaks.append({"eval": record.location, "train": [other.location for other in equal], "what": what})
                break
    kinds = Counter(leak["what"] for leak in leaks)
    summary = ClientSummary(
        client_id,
        train=len(train),
        eval=len(held_out),
        lengths=_lengths(records, max_length),
        duplicates=len(train) - len({record.text for record in train}),
        elsewhere=sum(any(other.client_id != client_id for other in by_text[record.text]) for record in train),
        leaks=kinds["record"],
        prompt_leaks=kinds["prompt"],
    )
    return summary, leaks


def _lengths(records: Sequence[ScannedRecord], max_length: int) -> TokenLengths | None:
    if not records:
        return None
    tokens = [record.tokens for record in records]
    cut = sum(count > max_length for count in tokens)
    supervised = sum(record.supervised for record in records) / sum(tokens)
    return TokenLengths(round(fmean(tokens), 1), median(tokens), max(tokens), round(supervised, 4), cut)


def _warn(inspection: Inspection, max_length: int) -> None:
    """Add one warning for each kind of finding."""
    clients = inspection.clients
    counts = {
        "held-out records that some client trains on, so that their loss says little": sum(c.leaks for c in clients),
        "held-out records whose prompt some client trains on, with another response": sum(
            c.prompt_leaks for c in clients
        ),
        "training records that the same client has more than once": sum(c.duplicates for c in clients),
        "training records that another client has too": sum(c.elsewhere for c in clients),
        f"records with more than {max_length} tokens, which are cut (data.max_length)": sum(
            c.lengths.cut for c in clients if c.lengths
        ),
    }
    inspection.warnings += [f"{what}: {count:,}" for what, count in counts.items() if count]
    if inspection.unread_keys:
        inspection.warnings.append(describe_unread_keys(inspection.unread_keys))
