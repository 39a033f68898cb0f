"""Clients' tokenized records: of a small federation read once, of a large one when a client is first needed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.data.client_files import ClientFiles, ClientSource, unread_files
from fl_lightning.data.exclusion import find_records
from fl_lightning.data.layout import entries_not_read, find_client, find_clients
from fl_lightning.data.lazy_clients import LAZY_ABOVE, LazyClients
from fl_lightning.data.record_keys import describe_unread_keys
from fl_lightning.data.record_table import COLUMNS
from fl_lightning.data.records import Record
from fl_lightning.data.splits import draw_selection, read_splits
from fl_lightning.data.table_index import IndexStore
from fl_lightning.data.token_store import TokenStore, client_key, default_folder
from fl_lightning.data.tokenization import Example, encode
from fl_lightning.errors import InputError

log = logging.getLogger(__name__)

Splits = Mapping[ClientSource, tuple[list[Record], list[Record]]]
"""{client: (training records, held-out records)}."""


@dataclass(frozen=True)
class ClientData:
    """One client's tokenized records.

    Attributes:
        department: of the client.
        client: its name.
        train: records that train.
        eval: held-out records, which choose nothing.
        selection: records that neither train nor evaluate: they choose between adapters.
    """

    department: str
    client: str
    train: Sequence[Example]
    eval: Sequence[Example]
    selection: Sequence[Example] = ()

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"


CENTRAL_CLIENT = "pooled/all"
"""The one client of `pool_clients`."""


def pool_clients(data: Mapping[str, ClientData]) -> ClientData:
    """All clients' training records as one client's, in the order of the clients; it has no held-out records.

    Raises:
        InputError: if a department has the name of the pool's.
    """
    department, client = CENTRAL_CLIENT.split("/")
    if any(client_id.split("/", 1)[0] == department for client_id in data):
        raise InputError(f"data.root: a department is called {department!r}; rename it, or do not use share: central")
    return ClientData(department, client, [example for member in data.values() for example in member.train], [])


def load_clients(
    root: str | Path,
    tokenizer: Any,
    *,
    department: str | None = None,
    client_id: str | None = None,
    clients_per_dept: int | None = None,
    max_records: int | None = None,
    max_length: int = 512,
    eval_fraction: float = 0.2,
    selection: float = 0.0,
    eval_records: int | None = None,
    seed: int = 0,
    token_store: str | None = None,
    columns: Sequence[str] = COLUMNS,
    exclude: Collection[str] = (),
    exclude_records: Collection[str] = (),
) -> Mapping[str, ClientData]:
    """{client_id: data}, departments sorted, clients in natural order. Only the chosen clients' records are read.

    A client without training records is left out. What is left out, or not read, is logged once. With more than
    `LAZY_ABOVE` clients, each is read and checked when it is first looked up; then an empty one is an error.

    Args:
        root: folder of departments, ``bundled:departments``, or a table; see `fl_lightning.data.layout`.
        tokenizer: a transformers tokenizer.
        department: load this department only.
        client_id: load this client only; `department` is then ignored.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        max_records: at most n training records per client.
        max_length: at most n tokens per record.
        eval_fraction: share held out if a client has no eval file.
        selection: share of the training records that are selection records instead, or from 1 on their number.
        eval_records: at most n held-out records per client; None takes all.
        seed: the run seed, for these splits.
        token_store: folder for the tokens of such clients; ``auto`` is `default_folder`, None keeps none.
        columns: of the department and of the client in a table.
        exclude: clients and departments to leave out, see `fl_lightning.data.exclusion`.
        exclude_records: digests of records to leave out.

    Raises:
        InputError: naming folder, file or line; or if a department has no training or no held-out records.
    """
    folder = (
        None if token_store is None else default_folder() if token_store == "auto" else Path(token_store).expanduser()
    )
    if client_id is not None:
        files = [find_client(root, client_id, clients_per_dept, columns, exclude)]
    else:
        store = None if folder is None else IndexStore(folder)
        found = find_clients(root, clients_per_dept, department, columns, exclude, store)
        files = [client for clients in found.values() for client in clients]
    digests = frozenset(exclude_records)
    reader = ClientReader(tokenizer, max_length, max_records, eval_fraction, selection, eval_records, seed, digests)
    if len(files) > LAZY_ABOVE:
        if folder is not None:
            reader.store = TokenStore.of(folder, tokenizer, max_length)
        return LazyClients({client.client_id: client for client in files}, reader.read)
    records = {client: reader.splits(client) for client in files}
    _check_departments(records, whole=client_id is None)
    data = {c.client_id: reader.tokenize(c, *splits) for c, splits in records.items() if splits[0]}
    _warn(records)
    if client_id is None and (paths := entries_not_read(root, department)):
        log.warning("%s in the folder of departments not read, no client: %s", _count(paths, "path"), _first(paths))
    return data


@dataclass
class ClientReader:
    """Reads single clients; the arguments are those of `load_clients`.

    Attributes:
        exclude_records: digests of records to leave out.
        store: keeps tokens between runs; None keeps none.
    """

    tokenizer: Any
    max_length: int
    max_records: int | None
    eval_fraction: float
    selection: float
    eval_records: int | None
    seed: int
    exclude_records: Collection[str] = ()
    store: TokenStore | None = None

    def splits(self, client: ClientSource) -> tuple[list[Record], list[Record]]:
        """A client's training and held-out records."""
        return read_splits(
            client,
            max_records=self.max_records,
            eval_fraction=self.eval_fraction,
            seed=self.seed,
            exclude_records=self.exclude_records,
        )

    def tokenize(self, client: ClientSource, training: list[Record], held_out: list[Record]) -> ClientData:
        """A client from its records."""
        examples = encode(training, self.tokenizer, self.max_length, client.training_location)
        chosen = draw_selection(len(examples), client.department, client.client, self.selection, self.seed)
        train = [example for index, example in enumerate(examples) if index not in chosen]
        evaluated = held_out[: self.eval_records]
        return ClientData(
            client.department,
            client.client,
            train,
            encode(evaluated, self.tokenizer, self.max_length, client.held_out_location),
            [examples[index] for index in sorted(chosen)],
        )

    def read(self, client_id: str, client: ClientSource) -> ClientData:
        """A client from the store, or from its records, which are then put there.

        Raises:
            InputError: if the records cannot be used, naming file or line, or if none is for training.
        """
        key = self.key(client) if self.store is not None else b""
        if self.store is not None and (stored := self.store.get(key)) is not None:
            return ClientData(client.department, client.client, *stored)
        training, held_out = self.splits(client)
        if not training:
            raise InputError(f"{client.training_location}: no training records; expected some, or remove the client")
        data = self.tokenize(client, training, held_out)
        if self.store is not None:
            self.store.put(key, [data.train, data.eval, data.selection])
        return data

    def key(self, client: ClientSource) -> bytes:
        """The key of a client in the store; the seed counts only where records are drawn by it."""
        contents = client.contents()
        choice: dict[str, Any] = {"max_records": self.max_records, "eval_records": self.eval_records}
        if contents[-1] is None or self.selection:
            choice |= {"client": client.client_id, "seed": self.seed, "selection": self.selection}
            choice["eval_fraction"] = self.eval_fraction
        if self.exclude_records and (found := find_records([client], self.exclude_records)):
            choice["exclude_records"] = sorted(found[client.client_id])
        return client_key(contents, choice)


def _warn(records: Splits) -> None:
    """One line for each kind of what is left out: clients without records, and files and keys that are not read."""
    empty = [client for client, (training, _) in records.items() if not training]
    unheld = [client for client, (training, held_out) in records.items() if training and not held_out]
    unread = [path for client in records if isinstance(client, ClientFiles) for path in unread_files(client)]
    keys = Counter(key for splits in records.values() for split in splits for r in split for key in r.unread_keys)
    if empty:
        log.warning(
            "%s without training records, left out: %s",
            _count(empty, "client"),
            _first(c.training_location for c in empty),
        )
    if unheld:
        log.warning(
            "%s without held-out records, trained on but not evaluated: %s",
            _count(unheld, "client"),
            _first(c.training_location for c in unheld),
        )
    if unread:
        log.warning("%s not read, beside train.jsonl and its held-out file: %s", _count(unread, "file"), _first(unread))
    if keys:
        log.warning("%s", describe_unread_keys(keys))


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things):,} {what}{'' if len(things) == 1 else 's'}"


def _first(paths: Iterable[str | Path]) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _check_departments(records: Splits, *, whole: bool) -> None:
    """Check that every department can be trained and, if all its clients are here, evaluated.

    Raises:
        InputError: naming the first that cannot.
    """
    departments: dict[str, list[ClientSource]] = {}
    for client in records:
        departments.setdefault(client.department, []).append(client)
    for department, clients in departments.items():
        first, trained = clients[0], [client for client in clients if records[client][0]]
        if not trained:
            raise InputError(
                f"{first.training_location}: no records; expected some in department {department}, or remove it"
            )
        if whole and not any(records[client][1] for client in trained):
            raise InputError(
                f"{first.held_out_location}: no records to hold out; expected some in department {department}: at "
                "least 2 records of a client, or an eval.jsonl"
            )
