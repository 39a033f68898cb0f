"""Results of the unfinished round, on disk: a run that is killed inside a round continues from them.

Each entry is one file, written atomically: the SHA-256 of the rest, then a message. A damaged entry, or one of another
cohort, counts as missing, and its work is done again; since every random draw is seeded by a hash of run, round and
client, that gives the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fl_lightning.federation.protocol import ClientTask, ClientUpdate, header_of, update_from
from fl_lightning.federation.update_archive import UpdateArchive
from fl_lightning.state import LoraState
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.storage.files import write_bytes
from fl_lightning.storage.manifest import with_digest, without_digest
from fl_lightning.storage.messages import decode, encode
from fl_lightning.storage.run_layout import journal, journals

log = logging.getLogger(__name__)


class Journal:
    """The entries of unfinished rounds under ``<folder>/round_R_journal``.

    Args:
        folder: of the checkpoints; None keeps nothing.
        writer: writes the entries.
        archive: of updates that are kept longer, or were kept by another run; None for none.

    Example:
        >>> import tempfile
        >>> writer = BackgroundWriter()
        >>> journal = Journal(Path(tempfile.mkdtemp()), writer)
        >>> journal.note(3, "evaluation", {"loss": 1.5})
        >>> writer.close()
        >>> journal.look_up(3, "evaluation"), journal.look_up(4, "evaluation")
        ({'loss': 1.5}, None)
    """

    def __init__(self, folder: Path | None, writer: BackgroundWriter, archive: UpdateArchive | None = None) -> None:
        self._folder, self._writer, self._archive = folder, writer, archive

    def record(self, updates: Sequence[ClientUpdate]) -> None:
        """Keep the updates of a cohort, all or none of them."""
        if self._archive is not None:  # first: what is in the journal is in the archive
            self._archive.record(updates)
        header = {"updates": [header_of(update) for update in updates]}
        self._write(updates[0].round_num, _name(updates), header, [update.state for update in updates])

    def replay(self, cohort: Sequence[ClientTask]) -> list[ClientUpdate] | None:
        """The updates of a cohort that was fitted before; None if there are none of exactly these clients."""
        entry = self._read(cohort[0].round_num, _name(cohort))
        if entry is None:
            return None if self._archive is None else self._archive.look_up(cohort)
        header, states = entry
        updates = [update_from(values, state) for values, state in zip(header["updates"], states, strict=True)]
        return updates if _fits(updates) == _fits(cohort) else None

    def note(self, round_num: int, name: str, value: Any) -> None:
        """Keep a JSON value."""
        self._write(round_num, name, value)

    def look_up(self, round_num: int, name: str) -> Any:
        """The JSON value of that name; None if there is none."""
        entry = self._read(round_num, name)
        return None if entry is None else entry[0]

    def keep(self, round_num: int, name: str, header: Any, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Keep a JSON value and tensors."""
        self._write(round_num, name, header, states)

    def kept(self, round_num: int, name: str) -> tuple[Any, list[LoraState]] | None:
        """The JSON value and tensors of that name; None if there are none."""
        return self._read(round_num, name)

    def truncate(self, round_num: int) -> None:
        """Remove the entries of all rounds up to this one, once its checkpoint is on the disk."""
        if self._folder is not None:
            for number, path in journals(self._folder).items():
                if number <= round_num:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, round_num: int, name: str) -> Path | None:
        return None if self._folder is None else self._folder / journal(round_num) / name

    def _write(self, round_num: int, name: str, header: Any, states: Sequence[Mapping[str, torch.Tensor]] = ()) -> None:
        path = self._path(round_num, name)
        if path is not None:
            self._writer.submit(lambda: write_bytes(path, with_digest(encode(header, states))))

    def _read(self, round_num: int, name: str) -> tuple[Any, list[LoraState]] | None:
        path = self._path(round_num, name)
        if path is None or not path.is_file():
            return None
        try:
            return decode(without_digest(path.read_bytes()))
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s); its work is done again", path, error)
            return None


def _fits(cohort: Sequence[ClientTask] | Sequence[ClientUpdate]) -> list[str]:
    """What is fitted: the client of each item, and whether it is the client's own adapter."""
    return [item.client_id + ("\town" if item.is_own else "") for item in cohort]


def _name(cohort: Sequence[ClientTask] | Sequence[ClientUpdate]) -> str:
    ids = "\n".join(_fits(cohort))
    return f"updates_{hashlib.sha256(ids.encode()).hexdigest()[:16]}"
