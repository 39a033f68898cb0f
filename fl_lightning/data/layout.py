"""Where a federation's records lie: a folder of departments, each with a folder or a file for every client.

    <root>/<department>_personal_clients/<client>/{train,eval}.jsonl     or  <root>/<department>/<client>/…
    <root>/<department>_personal_clients/<client>.jsonl (or .json)       split by eval_fraction, seeded

Anything else in the root is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_lightning import bundled
from fl_lightning.data.records import Record, read_records
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.files import check_name, natural_key

SUFFIX = "_personal_clients"
ENDINGS = (".jsonl", ".json")


@dataclass(frozen=True)
class ClientFiles:
    """Where one client's records are; `eval` is None where one file holds both splits."""

    department: str
    client: str
    train: Path
    eval: Path | None

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"


def true_clusters(root: str | Path) -> dict[str, int] | None:
    """{department: true cluster} where the data say it: ``true_department_clusters`` in ``structure.json``.

    Returns:
        None where there is no such file, or it says something else.

    Example:
        >>> true_clusters("bundled:departments")
        {'finance': 0, 'customer_support': 0, 'engineering': 1, 'hr': 2}
    """
    path = bundled.resolve(str(root)) / "structure.json"
    try:
        clusters = json.loads(path.read_text())["true_department_clusters"]
        return {str(name): number for number, names in enumerate(clusters) for name in names}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def find_clients(root: str | Path, clients_per_dept: int | None = None) -> dict[str, list[ClientFiles]]:
    """{department: clients in natural order}, departments sorted.

    Args:
        root: the folder, or ``bundled:departments``.
        clients_per_dept: the first so many clients of each department; None takes all.

    Raises:
        InputError: no such folder, no department, an unsafe name, or fewer clients than asked for.
    """
    folder = bundled.resolve(str(root))
    if not os.path.isdir(folder):  # false too for a name that is too long
        raise InputError(f"data.root: {root} is not a folder; wanted a folder of departments")
    found: dict[str, list[ClientFiles]] = {}
    for place in places_of(folder):
        department = place.name.removesuffix(SUFFIX)
        with _readable():
            clients = _clients_of(place, department)
        if not clients:
            continue
        check_name(department, f"{place}: department")
        if department in found:
            raise InputError(f"{place}: department {department!r} has two folders; keep one of them")
        found[department] = clients
    if not found:
        raise InputError(f"data.root: no department in {root}; wanted <department>/<client>/train.jsonl")
    if clients_per_dept is None:
        return dict(sorted(found.items()))
    for department, clients in found.items():
        if len(clients) < clients_per_dept:
            raise InputError(
                f"data.clients_per_dept: department {department} in {root} has {len(clients)} clients, "
                f"wanted {clients_per_dept}; ask for fewer or add clients"
            )
    return {department: found[department][:clients_per_dept] for department in sorted(found)}


def places_of(folder: Path) -> list[Path]:
    """The folders that may be departments, sorted.

    Raises:
        InputError: if the folder may not be listed.
    """
    with _readable():
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); wanted a folder that may be listed and entered"
        ) from error


def _clients_of(place: Path, department: str) -> list[ClientFiles]:
    clients: dict[str, ClientFiles] = {}
    for entry in place.iterdir():
        client = client_at(entry, department)
        if client is None:
            continue
        if client.client in clients:
            raise InputError(f"{entry}: client {client.client!r} is there twice; keep one of them")
        clients[client.client] = client
    return [clients[name] for name in sorted(clients, key=natural_key)]


def client_at(entry: Path, department: str) -> ClientFiles | None:
    """The client that a file or folder in a department's folder is; None where it is something else.

    Raises:
        InputError: an unsafe name, or held-out records without training records.
    """
    if entry.name.startswith("."):
        return None
    if entry.is_dir():
        train = next((entry / f"train{e}" for e in ENDINGS if (entry / f"train{e}").is_file()), None)
        held_out = next((entry / f"eval{e}" for e in ENDINGS if (entry / f"eval{e}").is_file()), None)
        if train is None:
            if held_out is not None:
                raise InputError(f"{entry}: eval file without train.jsonl; add the training records")
            return None
        client = ClientFiles(department, entry.name, train, held_out)
    elif entry.suffix in ENDINGS:
        client = ClientFiles(department, entry.stem, entry, None)
    else:
        return None
    check_name(client.client, f"{entry}: client")
    return client


def read_splits(
    files: ClientFiles, *, max_records: int | None = None, eval_fraction: float = 0.2, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records) of a client.

    Without an eval file, ``eval_fraction`` of the records is held out, at least one, drawn by a seed hashed from
    (seed, department, client). The first `max_records` training records are kept.

    Raises:
        InputError: naming file and line, or if one record cannot be split in two.
    """
    records = read_records(files.train)
    if files.eval is not None:
        return records[:max_records], read_records(files.eval)
    if len(records) < 2:
        raise InputError(f"{files.train}: 1 record, wanted at least 2 to hold one out; add records or an eval.jsonl")
    chosen = draw_held_out(files, len(records), eval_fraction, seed)
    training = [r for i, r in enumerate(records) if i not in chosen]
    return training[:max_records], [records[i] for i in sorted(chosen)]


def draw_held_out(files: ClientFiles, count: int, eval_fraction: float, seed: int) -> set[int]:
    """Which of a single file's `count` records, at least two, are held out."""
    held_out = min(count - 1, max(1, round(count * eval_fraction)))
    order = list(range(count))
    random.Random(derive_seed(seed, "split", files.department, files.client)).shuffle(order)
    return set(order[:held_out])
