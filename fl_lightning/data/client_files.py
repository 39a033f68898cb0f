"""The files of one client: its records that train and those that are held out, in a folder or in one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_lightning.data.record_files import read_records
from fl_lightning.data.records import Record
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, read_text

ENDINGS = (".jsonl", ".json")
HELD_OUT = ("eval", "validation", "valid", "val", "dev")
"""Names of a file of held-out records beside train.jsonl; the first that exists is read. test.jsonl never is:
results on it would choose rounds and methods, and then say nothing about new records."""
_TRAIN_NAMES = [f"train{ending}" for ending in ENDINGS]
_HELD_OUT_NAMES = [f"{name}{ending}" for name in HELD_OUT for ending in ENDINGS]


class ClientSource(Protocol):
    """Where one client's records are."""

    @property
    def department(self) -> str:
        """Its department."""
        ...

    @property
    def client(self) -> str:
        """Its name in the department."""
        ...

    @property
    def client_id(self) -> str:
        """``department/client``."""
        ...

    @property
    def training_location(self) -> str:
        """Where its training records are, for messages."""
        ...

    @property
    def held_out_location(self) -> str:
        """Where its held-out records are, for messages."""
        ...

    def contents(self) -> list[bytes | None]:
        """The bytes of all its records: two clients with the same bytes have the same records."""
        ...

    def training_records(self) -> list[Record]:
        """Its records that train; all of them if none are set apart."""
        ...

    def held_out_records(self) -> list[Record] | None:
        """Its records that are set apart for evaluation; None if none are."""
        ...


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Files of one client's records, in one folder; `eval_name` is None if one file holds both splits."""

    department: str
    client: str
    folder: str
    train_name: str
    eval_name: str | None

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"

    @property
    def train(self) -> Path:
        """The file of the training records, or of all."""
        return Path(self.folder, self.train_name)

    @property
    def eval(self) -> Path | None:
        """The file of the held-out records."""
        return None if self.eval_name is None else Path(self.folder, self.eval_name)

    @property
    def training_location(self) -> str:
        """The path of the training records."""
        return str(self.train)

    @property
    def held_out_location(self) -> str:
        """The path of the held-out records."""
        return str(self.eval or self.train)

    def contents(self) -> list[bytes | None]:
        """The bytes of both files, and how they are read.

        Raises:
            InputError: if one cannot be read.
        """
        endings = f"{self.train_name.endswith('.json')} {(self.eval_name or '').endswith('.json')}".encode()
        texts = [None if path is None else read_text(path, "a file of records") for path in (self.train, self.eval)]
        return [endings, *(None if text is None else text.encode() for text in texts)]

    def training_records(self) -> list[Record]:
        """The records of the file `train`, which may be empty."""
        return read_records(self.train, may_be_empty=True)

    def held_out_records(self) -> list[Record] | None:
        """The records of the file `eval`, which may be empty; None without one."""
        return None if self.eval is None else read_records(self.eval, may_be_empty=True)


def client_files_at(entry: str | Path, department: str) -> ClientFiles | None:
    """The client in a file or folder of a department's folder; None if it is something else.

    Raises:
        InputError: an unsafe name, or held-out records without training records.
    """
    folder, name = os.path.split(entry)  # no paths: there may be 100,000 entries
    if name.startswith("."):
        return None
    if os.path.isdir(entry):
        path = os.fspath(entry)
        train = next((file for file in _TRAIN_NAMES if os.path.isfile(f"{path}/{file}")), None)
        held_out = next((file for file in _HELD_OUT_NAMES if os.path.isfile(f"{path}/{file}")), None)
        if train is None:
            if held_out is not None:
                raise InputError(f"{path}/{held_out}: held-out records without train.jsonl; add the training records")
            return None
        client = ClientFiles(department, name, path, train, held_out)
    elif (stem := name.removesuffix(ending := os.path.splitext(name)[1])) and ending in ENDINGS:
        client = ClientFiles(department, stem, folder, name, None)
    else:
        return None
    check_name(client.client, f"{entry}: client")
    return client


def unread_files(files: ClientFiles) -> list[Path]:
    """Files of records in a client's folder that are not read, such as test.jsonl, sorted."""
    folder = Path(files.folder)
    if folder.name != files.client or files.train_name not in _TRAIN_NAMES:
        return []  # the client is a file
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in ENDINGS and path not in (files.train, files.eval) and not path.name.startswith(".")
    )
