"""Updates of sites that wait in a department's buffer, on disk: a server that is killed goes on with them.

Each arrival is one file, ``arrivals/N`` beside the checkpoints: the SHA-256 of the rest, then a message. N is the order
in which updates arrived; a checkpoint names the last one that it knows, and those after it are put into the buffers
again, in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fl_lightning.federation.protocol import ClientUpdate, header_of, update_from
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.storage.files import write_bytes
from fl_lightning.storage.manifest import with_digest, without_digest
from fl_lightning.storage.messages import decode, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """An update and the fit that it is the result of.

    Attributes:
        number: from 1, in the order of arrival.
        update: whose round is the one after its start.
        started: (round, step of its department) after which the fit started.
    """

    number: int
    update: ClientUpdate
    started: tuple[int, int]


class ArrivalJournal:
    """The arrivals of a run.

    Args:
        folder: of the files; None keeps nothing.
        writer: writes and removes them, in order with the checkpoints.

    Example:
        >>> import tempfile, torch
        >>> writer = BackgroundWriter()
        >>> journal = ArrivalJournal(Path(tempfile.mkdtemp()) / "arrivals", writer)
        >>> journal.record(Arrival(4, ClientUpdate("hr/a", 3, {"lora_A": torch.ones(1)}, 5, 90), (2, 1)))
        >>> writer.close()
        >>> journal.numbers(), journal.read(4).update.client_id, journal.read(5)
        ([4], 'hr/a', None)
    """

    def __init__(self, folder: Path | None, writer: BackgroundWriter) -> None:
        self._folder, self._writer = folder, writer

    def record(self, arrival: Arrival) -> None:
        """Write an arrival."""
        if (path := self._path(arrival.number)) is not None:
            header = {"update": header_of(arrival.update), "started": list(arrival.started)}
            state = arrival.update.state
            self._writer.submit(lambda: write_bytes(path, with_digest(encode(header, [state]))))

    def numbers(self) -> list[int]:
        """The numbers of all files, ascending."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def read(self, number: int) -> Arrival | None:
        """An arrival; None if there is none of this number, or it cannot be read."""
        path = self._path(number)
        if path is None or not path.is_file():
            return None
        try:
            header, (state,) = decode(without_digest(path.read_bytes()))
            version, step = header["started"]
            return Arrival(number, update_from(header["update"], state), (int(version), int(step)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); its site is asked again", path, error)
            return None

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove files, after everything that was submitted to the writer before."""
        for path in [path for number in numbers if (path := self._path(number)) is not None]:
            self._writer.submit(partial(path.unlink, missing_ok=True))

    def _path(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / str(number)
