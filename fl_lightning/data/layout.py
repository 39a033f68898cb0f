"""Where a federation's records are: a folder of departments, each with a folder or a file for every client.

    <root>/<department>_personal_clients/<client>/{train,eval}.jsonl     or  <root>/<department>/<client>/…
    <root>/<department>_personal_clients/<client>.jsonl (or .json)       split by eval_fraction, seeded

Anything else in the root is ignored. Or the root is one table with a column for the department and one for the client.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from fl_lightning import bundled
from fl_lightning.data.client_files import ClientFiles, ClientSource, client_files_at
from fl_lightning.data.exclusion import is_excluded, with_places
from fl_lightning.data.record_table import COLUMNS, is_table, table_clients
from fl_lightning.data.table_index import IndexStore
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.run_adapters import BASE

SUFFIX = "_personal_clients"
STRUCTURE = "structure.json"
TRUE_CLUSTERS = "true_department_clusters"


def true_clusters(root: str | Path) -> dict[str, int] | None:
    """{department: true cluster}, if the data have it: ``true_department_clusters`` in ``structure.json``.

    Returns:
        None if there is no such file, or it does not have this key.

    Raises:
        InputError: if the file is not JSON, or its clusters are not lists of departments, each department in one.

    Example:
        >>> true_clusters("bundled:departments")
        {'finance': 0, 'customer_support': 0, 'engineering': 1, 'hr': 2}
    """
    path = bundled.resolve(str(root)) / STRUCTURE
    if not os.path.lexists(path):
        return None
    structure = read_json(path)
    if not isinstance(structure, dict):
        raise InputError(f"{path}: expected an object with {TRUE_CLUSTERS}, got {type(structure).__name__}")
    if TRUE_CLUSTERS not in structure:
        return None
    clusters = structure[TRUE_CLUSTERS]
    if not isinstance(clusters, list) or not all(isinstance(names, list) for names in clusters):
        raise InputError(f"{path}: {TRUE_CLUSTERS}: expected lists of departments, got {clusters!r:.80}")
    labels: dict[str, int] = {}
    for number, names in enumerate(clusters):
        for name in names:
            if not isinstance(name, str) or name in labels:
                raise InputError(
                    f"{path}: {TRUE_CLUSTERS}: expected every department once, by its name, got {name!r:.80}"
                )
            labels[name] = number
    return labels


def find_clients(
    root: str | Path,
    clients_per_dept: int | None = None,
    department: str | None = None,
    columns: Sequence[str] = COLUMNS,
    exclude: Collection[str] = (),
    store: IndexStore | None = None,
) -> dict[str, list[ClientSource]]:
    """{department: clients in natural order}, departments sorted.

    Args:
        root: the folder, ``bundled:departments``, or a table, see `fl_lightning.data.record_table`.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        department: look into this department's folder only.
        columns: of the department and of the client in a table.
        exclude: clients and departments to leave out; nobody moves up to their places.
        store: of indexes of tables; None keeps none.

    Raises:
        InputError: no such folder, no department, an unsafe name, or fewer clients than asked for.
    """
    places = find_places(root, clients_per_dept, department, columns, exclude, store)
    present = {name: [client for client in clients.values() if client] for name, clients in places.items()}
    if places and not any(present.values()):
        raise InputError(f"data.exclude: expected to leave some client of {root}, got all of them excluded")
    return {name: clients for name, clients in present.items() if clients}


def find_places(
    root: str | Path,
    clients_per_dept: int | None = None,
    department: str | None = None,
    columns: Sequence[str] = COLUMNS,
    exclude: Collection[str] = (),
    store: IndexStore | None = None,
) -> dict[str, dict[str, ClientSource | None]]:
    """{department: {client_id: the client, or None if it is left out}}; arguments and errors as for `find_clients`."""
    folder = bundled.resolve(str(root))
    departments: dict[str, list[ClientSource]]
    if is_table(folder):
        found = table_clients(folder, columns, store)
        for name in found:
            check_department_name(name, folder)
        departments = {name: list(clients) for name, clients in found.items() if department in (None, name)}
    else:
        departments = _departments_in(folder, root, department)
    if not departments:
        if department is not None:
            folders = () if is_table(folder) else department_folders(folder)
            names = {path.name.removesuffix(SUFFIX) for path in folders}
            raise InputError(f"department: expected one of {root}, got {department!r}{nearest(department, names)}")
        raise InputError(f"data.root: no department in {root}; expected <department>/<client>/train.jsonl")
    places = {name: with_places(name, departments[name], exclude) for name in sorted(departments)}
    if clients_per_dept is None:
        return places
    for name, clients in places.items():
        if len(clients) < clients_per_dept:
            raise InputError(
                f"data.clients_per_dept: expected {clients_per_dept} clients or more in every department, got "
                f"{len(clients)} in department {name} of {root}; ask for fewer or for all, or add clients"
            )
    return {name: dict(itertools.islice(clients.items(), clients_per_dept)) for name, clients in places.items()}


def _departments_in(folder: Path, root: str | Path, department: str | None) -> dict[str, list[ClientSource]]:
    """{department: clients} of a folder; empty departments are left out."""
    if not os.path.isdir(folder):  # also false for a name that is too long
        raise InputError(f"data.root: {root} is not a folder; expected a folder of departments")
    departments: dict[str, list[ClientSource]] = {}
    for path in department_folders(folder):
        name = path.name.removesuffix(SUFFIX)
        if department not in (None, name):
            continue
        with _refuse_unreadable():
            clients = _clients_in(path, name)
        if not clients:
            continue
        check_department_name(name, path)
        if name in departments:
            raise InputError(f"{path}: department {name!r} has two folders; keep one of them")
        departments[name] = list(clients)
    return departments


def find_client(
    root: str | Path,
    client_id: str,
    clients_per_dept: int | None = None,
    columns: Sequence[str] = COLUMNS,
    exclude: Collection[str] = (),
) -> ClientSource:
    """The files of one client; no other department's folder is looked into.

    Args:
        root: the folder, or ``bundled:departments``.
        client_id: ``department/client``.
        clients_per_dept: as for `find_clients`; a client beyond the first n is refused.
        columns: as for `find_clients`.
        exclude: as for `find_clients`; a client that is left out is refused.

    Raises:
        InputError: if there is no such client, or `find_clients` refuses its department.
    """
    department = client_id.partition("/")[0]
    folder = bundled.resolve(str(root))
    is_known = os.path.isdir(folder) and any(
        os.path.isdir(folder / name) for name in (department, department + SUFFIX) if department and "\0" not in name
    )
    departments = find_clients(root, clients_per_dept, department if is_known else None, columns, exclude)
    files = {client.client_id: client for clients in departments.values() for client in clients}
    if client_id not in files and is_excluded(client_id, exclude):
        raise InputError(f"data.exclude: expected a client that takes part, got {client_id!r}, which is left out")
    if client_id not in files:
        raise InputError(f"data.root: expected a client of {root}, got {client_id!r}{nearest(client_id, files)}")
    return files[client_id]


def department_folders(folder: Path) -> list[Path]:
    """The folders that may be departments, sorted.

    Raises:
        InputError: if the folder may not be listed.
    """
    with _refuse_unreadable():
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


@contextlib.contextmanager
def _refuse_unreadable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); expected a folder that may be listed and entered"
        ) from error


def _clients_in(folder: Path, department: str) -> list[ClientFiles]:
    clients: dict[str, ClientFiles] = {}
    path, name_of = os.fspath(folder), sys.intern(department)
    for name in os.listdir(path):
        entry = f"{path}/{name}"
        client = client_files_at(entry, name_of)
        if client is None:
            continue
        if client.client in clients:
            raise InputError(f"{entry}: client {client.client!r} is there twice; keep one of them")
        clients[client.client] = client
    return [clients[name] for name in sorted(clients, key=natural_key)]


def check_department_name(name: str, folder: Path) -> None:
    """Check the name of a department: safe for a folder, and not that of the base model in commands and files.

    Raises:
        InputError: if it is not.
    """
    check_name(name, f"{folder}: department")
    if name == BASE:
        raise InputError(f"{folder}: expected another name than {BASE!r}, which is the base model's; rename the folder")


def entries_not_read(root: str | Path, department: str | None = None) -> list[Path]:
    """What is in the departments' folders and is no client, such as ``bob.csv``, sorted; a whole folder if none is.

    Args:
        root: the folder, or ``bundled:departments``.
        department: look into this department's folder only.
    """
    if is_table(bundled.resolve(str(root))):
        return []
    not_read: list[Path] = []
    for folder in department_folders(bundled.resolve(str(root))):
        if department not in (None, folder.name.removesuffix(SUFFIX)):
            continue
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__")) and p.suffix != ".md")
        others = [entry for entry in entries if client_files_at(entry, folder.name) is None]
        not_read += [folder] if entries and others == entries else others
    return not_read
