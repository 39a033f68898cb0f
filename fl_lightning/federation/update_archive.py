"""Clients' updates of all rounds, found by everything that they depend on: a fit with the same inputs is not repeated.

A cohort's bits depend on all its members, so a cohort is kept as a whole: ``updates/round_R/<members>_<inputs>``, a
file as in the journal. The inputs are the tasks with the bytes of their states, the members' records as token ids, and
what is the same for the whole run: training, base model, versions of packages, device.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import TASK_STATES, ClientTask, ClientUpdate, header_of, update_from
from fl_lightning.provenance.digests import json_digest, records_digest, state_digest
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.storage.files import write_bytes
from fl_lightning.storage.manifest import DIGEST_SIZE, with_digest, without_digest
from fl_lightning.storage.messages import decode, encode

log = logging.getLogger(__name__)


class UpdateArchive:
    """Keeps and finds the updates of cohorts.

    Args:
        folder: in which updates are kept; None keeps none.
        writer: writes them.
        data: {client_id: tokenized records}.
        context: JSON values that all fits of the run depend on, besides tasks and records.
        source: a folder of another run in which updates are looked up.

    Attributes:
        reused: number of updates that were found instead of being computed.
    """

    def __init__(
        self,
        folder: Path | None,
        writer: BackgroundWriter,
        data: Mapping[str, ClientData],
        context: Mapping[str, Any],
        source: Path | None = None,
    ) -> None:
        self._folder, self._writer, self._data, self._source = folder, writer, data, source
        self._context = json_digest(context)
        self._records: dict[tuple[str, bool], str] = {}
        self._names: dict[str, str] = {}
        self.reused = 0

    def look_up(self, cohort: Sequence[ClientTask]) -> list[ClientUpdate] | None:
        """The updates of a cohort with the same inputs; None if there are none. Called before `record`."""
        if any(task.client_id not in self._data for task in cohort):  # the central client
            return None
        members, name = _members(cohort), self._name(cohort)
        self._names[members] = name
        if self._source is None or not (path := self._source / name).is_file():
            return None
        try:
            data = path.read_bytes()
            header, states = decode(without_digest(data))
            updates = [update_from(values, state) for values, state in zip(header["updates"], states, strict=True)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); its work is done again", path, error)
            return None
        if [(u.client_id, u.is_own) for u in updates] != [(t.client_id, t.is_own) for t in cohort]:
            return None
        self._keep(members, data)
        self.reused += len(updates)
        return updates

    def record(self, updates: Sequence[ClientUpdate]) -> None:
        """Keep the updates of a cohort that was looked up."""
        header = {"updates": [header_of(update) for update in updates]}
        self._keep(_members(updates), with_digest(encode(header, [update.state for update in updates])))

    def _keep(self, members: str, data: bytes) -> None:
        name = self._names.pop(members, None)
        if self._folder is not None and name is not None:
            self._writer.submit(partial(write_bytes, self._folder / name, data))

    def _name(self, cohort: Sequence[ClientTask]) -> str:
        digests: dict[int, str] = {}

        def digest(state: Any) -> str:
            if id(state) not in digests:  # clients of a department share their start
                digests[id(state)] = state_digest(state)
            return digests[id(state)]

        tasks = [
            {
                "task": header_of(task),
                "states": [digest(getattr(task, name)) for name in TASK_STATES],
                "records": [self._digest_of(task.client_id, held_out=False)]
                + ([self._digest_of(task.client_id, held_out=True)] if task.evaluate else []),
            }
            for task in cohort
        ]
        inputs = json_digest({"context": self._context, "tasks": tasks})
        return f"round_{cohort[0].round_num}/{_members(cohort)}_{inputs}"

    def _digest_of(self, client_id: str, *, held_out: bool) -> str:
        key = client_id, held_out
        if key not in self._records:
            client = self._data[client_id]
            self._records[key] = records_digest(client.eval if held_out else client.train)
        return self._records[key]


def archived_cohorts(folder: Path, round_num: int) -> list[list[str]]:
    """The client ids of each cohort of a round in an archive; a file that cannot be read is left out."""
    cohorts = []
    for path in sorted((folder / f"round_{round_num}").glob("*_*")):
        try:
            with path.open("rb") as file:
                file.seek(DIGEST_SIZE)
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            cohorts.append([str(update["client_id"]) for update in head["header"]["updates"]])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            continue
    return cohorts


def _members(cohort: Sequence[ClientTask] | Sequence[ClientUpdate]) -> str:
    ids = "\n".join(f"{item.client_id}\t{item.is_own}" for item in cohort)
    return hashlib.sha256(ids.encode()).hexdigest()[:16]
