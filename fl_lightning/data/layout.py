"""Where a federation's records are: a folder of departments, each with a folder or a file for every client.

    <root>/<department>_personal_clients/<client>/{train,eval}.jsonl     or  <root>/<department>/<client>/…
    <root>/<department>_personal_clients/<client>.jsonl (or .json)       split by eval_fraction, seeded

Anything else in the root is ignored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_lightning import bundled
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.run_adapters import BASE

SUFFIX = "_personal_clients"
ENDINGS = (".jsonl", ".json")
HELD_OUT = ("eval", "validation", "valid", "val", "dev")
"""Names of a file of held-out records beside train.jsonl; the first that exists is read. test.jsonl never is:
results on it would choose rounds and methods, and then say nothing about new records."""
STRUCTURE = "structure.json"
TRUE_CLUSTERS = "true_department_clusters"


@dataclass(frozen=True)
class ClientFiles:
    """Files of one client's records; `eval` is None if one file holds both splits."""

    department: str
    client: str
    train: Path
    eval: Path | None

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"


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
    root: str | Path, clients_per_dept: int | None = None, department: str | None = None
) -> dict[str, list[ClientFiles]]:
    """{department: clients in natural order}, departments sorted.

    Args:
        root: the folder, or ``bundled:departments``.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        department: look into this department's folder only.

    Raises:
        InputError: no such folder, no department, an unsafe name, or fewer clients than asked for.
    """
    folder = bundled.resolve(str(root))
    if not os.path.isdir(folder):  # also false for a name that is too long
        raise InputError(f"data.root: {root} is not a folder; expected a folder of departments")
    departments: dict[str, list[ClientFiles]] = {}
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
        departments[name] = clients
    if not departments:
        if department is not None:
            names = {path.name.removesuffix(SUFFIX) for path in department_folders(folder)}
            raise InputError(f"department: expected one of {root}, got {department!r}{nearest(department, names)}")
        raise InputError(f"data.root: no department in {root}; expected <department>/<client>/train.jsonl")
    if clients_per_dept is None:
        return dict(sorted(departments.items()))
    for name, clients in departments.items():
        if len(clients) < clients_per_dept:
            raise InputError(
                f"data.clients_per_dept: expected {clients_per_dept} clients or more in every department, got "
                f"{len(clients)} in department {name} of {root}; ask for fewer or for all, or add clients"
            )
    return {name: departments[name][:clients_per_dept] for name in sorted(departments)}


def find_client(root: str | Path, client_id: str, clients_per_dept: int | None = None) -> ClientFiles:
    """The files of one client; no other department's folder is looked into.

    Args:
        root: the folder, or ``bundled:departments``.
        client_id: ``department/client``.
        clients_per_dept: as for `find_clients`; a client beyond the first n is refused.

    Raises:
        InputError: if there is no such client, or `find_clients` refuses its department.
    """
    department = client_id.partition("/")[0]
    folder = bundled.resolve(str(root))
    is_known = os.path.isdir(folder) and any(
        os.path.isdir(folder / name) for name in (department, department + SUFFIX) if department and "\0" not in name
    )
    departments = find_clients(root, clients_per_dept, department if is_known else None)
    files = {client.client_id: client for clients in departments.values() for client in clients}
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
    for entry in folder.iterdir():
        client = client_files_at(entry, department)
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


def client_files_at(entry: Path, department: str) -> ClientFiles | None:
    """The client in a file or folder of a department's folder; None if it is something else.

    Raises:
        InputError: an unsafe name, or held-out records without training records.
    """
    if entry.name.startswith("."):
        return None
    if entry.is_dir():
        train = next((entry / f"train{e}" for e in ENDINGS if (entry / f"train{e}").is_file()), None)
        held_out = next((p for name in HELD_OUT for e in ENDINGS if (p := entry / f"{name}{e}").is_file()), None)
        if train is None:
            if held_out is not None:
                raise InputError(f"{held_out}: held-out records without train.jsonl; add the training records")
            return None
        client = ClientFiles(department, entry.name, train, held_out)
    elif entry.suffix in ENDINGS:
        client = ClientFiles(department, entry.stem, entry, None)
    else:
        return None
    check_name(client.client, f"{entry}: client")
    return client


def unread_files(files: ClientFiles) -> list[Path]:
    """Files of records in a client's folder that are not read, such as test.jsonl, sorted."""
    folder = files.train.parent
    if folder.name != files.client or files.train.stem != "train":
        return []  # the client is a file
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in ENDINGS and path not in (files.train, files.eval) and not path.name.startswith(".")
    )


def entries_not_read(root: str | Path, department: str | None = None) -> list[Path]:
    """What is in the departments' folders and is no client, such as ``bob.csv``, sorted; a whole folder if none is.

    Args:
        root: the folder, or ``bundled:departments``.
        department: look into this department's folder only.
    """
    not_read: list[Path] = []
    for folder in department_folders(bundled.resolve(str(root))):
        if department not in (None, folder.name.removesuffix(SUFFIX)):
            continue
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__")) and p.suffix != ".md")
        others = [entry for entry in entries if client_files_at(entry, folder.name) is None]
        not_read += [folder] if entries and others == entries else others
    return not_read
