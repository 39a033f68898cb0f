"""What a run logged, one JSON line a round, in a file that only grows.

A checkpoint refers to it by a `HistoryMark`, the length and SHA-256 of the lines up to its round. A kill between a line
and its checkpoint, or in the middle of a line, leaves a longer file than the newest checkpoint says: the surplus is
ignored when the checkpoint is read and cut off when its run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fl_lightning.storage.files import sync_folder, write_bytes
from fl_lightning.storage.run_layout import HISTORY

Row: TypeAlias = tuple[int, dict[str, float]]
"""(step, metrics) as they were logged."""


@dataclass(frozen=True)
class HistoryMark:
    """A position in a history file: after the first `bytes` bytes, which have this SHA-256."""

    bytes: int
    sha256: str

    @staticmethod
    def describes(value: object) -> bool:
        """Whether a JSON value is a mark."""
        return (
            isinstance(value, dict)
            and value.keys() == {"bytes", "sha256"}
            and is_count(value["bytes"])
            and isinstance(value["sha256"], str)
        )


@dataclass(frozen=True)
class HistoryEntry:
    """One line.

    Attributes:
        round_num: of the checkpoint that was written after it; lines are in ascending order.
        rows: logged since the line before.
        records: {state key: what the callback recorded of this round}, JSON values.
    """

    round_num: int
    rows: list[Row] = field(default_factory=list)
    records: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> bytes:
        """The entry as it is now, as a line of the file."""
        value = {"round": self.round_num, "rows": self.rows, "records": self.records}
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> HistoryEntry:
        """The entry in a line.

        Raises:
            ValueError: if the line is not an entry.
        """
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise ValueError(f"{HISTORY}: a line is nested too deeply") from error
        if not (
            isinstance(value, dict)
            and is_count(value.get("round"))
            and isinstance(value.get("rows"), list)
            and all(map(is_row, value["rows"]))
            and isinstance(value.get("records"), dict)
        ):
            raise ValueError(f"{HISTORY}: expected lines of round, rows and records, got {line[:80]!r}")
        return cls(value["round"], [(step, row) for step, row in value["rows"]], value["records"])


class HistoryFile:
    """Appends to a history file.

    Args:
        path: of the file; it need not exist.

    Example:
        >>> import tempfile
        >>> history = HistoryFile(Path(tempfile.mkdtemp()) / HISTORY)
        >>> history.replace([])
        >>> first = history.append(HistoryEntry(0, [(0, {"eval/loss": 3.0})]).line())
        >>> second = history.append(HistoryEntry(1, [(1, {"eval/loss": 2.5})]).line())
        >>> [entry.rows for entry in read_history(history.path, first)]
        [[(0, {'eval/loss': 3.0})]]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length, self._digest = 0, hashlib.sha256()

    def replace(self, entries: Iterable[HistoryEntry]) -> None:
        """Write the file anew, atomically."""
        data = b"".join(entry.line() for entry in entries)
        write_bytes(self.path, data)
        self._length, self._digest = len(data), hashlib.sha256(data)

    def truncate(self, round_num: int) -> bool:
        """Cut off what comes after the line of a round.

        Returns:
            Whether the file now ends with that line; if not, it is unchanged.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        end, last_round = 0, None
        for line in _whole_lines(data):
            try:
                entry = HistoryEntry.parse(line)
            except ValueError:
                break
            if entry.round_num > round_num:
                break
            end, last_round = end + len(line), entry.round_num
        if last_round != round_num:
            return False
        os.truncate(self.path, end)
        self._length, self._digest = end, hashlib.sha256(data[:end])
        return True

    def append(self, line: bytes) -> HistoryMark:
        """Append a line, on the disk when this returns.

        Returns:
            The position after the line.
        """
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path.parent)
        self._length += len(line)
        self._digest.update(line)
        return HistoryMark(self._length, self._digest.hexdigest())


def read_history(path: Path, mark: HistoryMark) -> list[HistoryEntry]:
    """The entries up to a mark.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file does not begin with the bytes that the mark describes, or these are not entries.
    """
    data = b""
    if path.is_file() and path.stat().st_size >= mark.bytes:
        with path.open("rb") as file:
            data = file.read(mark.bytes)
    if len(data) < mark.bytes or hashlib.sha256(data).hexdigest() != mark.sha256:
        raise ValueError(f"{path}: its first {mark.bytes} bytes have changed or are missing")
    return [HistoryEntry.parse(line) for line in _whole_lines(data)]


def is_count(value: object) -> bool:
    """Whether a JSON value is a non-negative integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_row(value: object) -> bool:
    """Whether a JSON value is a row: a step and an object."""
    return isinstance(value, list) and len(value) == 2 and is_count(value[0]) and isinstance(value[1], dict)


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Lines with their newline; the rest after the last newline, which a kill has torn, is left out."""
    return (line for line in data.splitlines(keepends=True) if line.endswith(b"\n"))
