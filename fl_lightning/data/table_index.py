"""Whose each row of a table is, kept on disk beside the tokens, so that a large file is not parsed at every start.

An index is found by the SHA-256 of the file and the names of the two columns: a changed file is listed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_lightning.storage.block_file import KEY_BYTES, BlockFile
from fl_lightning.storage.files import natural_key

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same file has another index than before."""

FILE = "tables.bin"
"""In the folder of token stores."""

MAX_BLOCK = 2**32 - 1
_SIZES = struct.Struct("<QQQ")  # bytes of names, clients, rows

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TableIndex:
    """The rows of a table, by client.

    Attributes:
        clients: (department, client), departments sorted, clients in natural order.
        ends: where the rows of each client end in `order`.
        order: numbers of rows, those of a client together and in the order of the table.
        lines: for each row of a JSONL file, where it starts, its bytes, and its number of line, (3, rows).
    """

    clients: list[tuple[str, str]]
    ends: Integers
    order: Integers
    lines: Integers

    @classmethod
    def of(cls, clients: Sequence[tuple[str, str]], owners: array[int], lines: Sequence[array[int]]) -> TableIndex:
        """The index of rows whose owners are known.

        Args:
            clients: (department, client), in any order.
            owners: of each row, its place in `clients`.
            lines: see `TableIndex`; empty arrays for other tables.

        Example:
            >>> index = TableIndex.of([("hr", "b"), ("hr", "a")], array("q", [1, 0, 1]), [array("q")] * 3)
            >>> index.clients, index.ends.tolist(), index.order.tolist()
            ([('hr', 'a'), ('hr', 'b')], [2, 3], [0, 2, 1])
        """
        in_order = sorted(range(len(clients)), key=lambda k: (clients[k][0], natural_key(clients[k][1])))
        places = np.argsort(np.asarray(in_order, np.int64))
        numbers = places[_integers(owners)]
        ends = np.cumsum(np.bincount(numbers, minlength=len(clients)), dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        return cls([clients[k] for k in in_order], ends, order, np.stack([_integers(values) for values in lines]))

    def pack(self) -> bytes:
        """As bytes."""
        departments: dict[str, list[str]] = {}
        for department, client in self.clients:
            departments.setdefault(department, []).append(client)
        names = json.dumps(departments).encode()
        arrays = (self.ends, self.order, self.lines)
        sizes = _SIZES.pack(len(names), len(self.clients), len(self.order))
        return b"".join([sizes, names, *(values.astype("<i8").tobytes() for values in arrays)])

    @classmethod
    def unpack(cls, block: bytes) -> TableIndex:
        """From `pack`."""
        num_bytes, num_clients, num_rows = _SIZES.unpack_from(block)
        start = _SIZES.size + num_bytes
        departments = json.loads(block[_SIZES.size : start])
        clients = [(department, client) for department, some in departments.items() for client in some]
        values = np.frombuffer(block[start:], "<i8").astype(np.int64)
        ends, order, lines = np.split(values, [num_clients, num_clients + num_rows])
        return cls(clients, ends, order, lines.reshape(3, -1))


class IndexStore:
    """Indexes of tables on disk, for their owner only. What goes wrong with it costs time and nothing else.

    Args:
        folder: of all token stores.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def get(self, key: bytes) -> TableIndex | None:
        """An index; None if it is not there."""
        block = None
        with self._saying_what_fails():
            block = BlockFile(self._path).get(key) if self._path.exists() else None
        return None if block is None else TableIndex.unpack(block)

    def put(self, key: bytes, index: TableIndex) -> None:
        """Keep an index."""
        block = index.pack()
        with self._saying_what_fails():
            if len(block) <= MAX_BLOCK:
                BlockFile(self._path).put(key, block)

    @contextlib.contextmanager
    def _saying_what_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # the run goes on without
            log.warning("%s: %s; the list of clients is not kept", error.filename or self._path, error.strerror)


def index_key(file_digest: bytes, columns: Sequence[str]) -> bytes:
    """The key of an index.

    Args:
        file_digest: SHA-256 of the table.
        columns: of the department and of the client.
    """
    values = json.dumps([FORMAT, *columns]).encode()
    return hashlib.sha256(file_digest + values).digest()[:KEY_BYTES]


def _integers(values: array[int]) -> Integers:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
