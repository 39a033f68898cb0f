"""``ledger.jsonl``: a chain of lines, each of which has the SHA-256 of the line before.

A line is JSON in its `canonical` form. The first one (``start``) names the run, the next ones its rounds, and the last
one (``end``) has the digests of the final files and the operator's signature. Nothing in it comes from a clock.

A round's line is on the disk before its checkpoint. A kill between them, or in the middle of a line, leaves a longer
file than the newest checkpoint says: the surplus is cut off when the run resumes, and written again with the same
bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.provenance.digests import NO_DIGEST, bytes_digest, canonical
from fl_lightning.storage.files import sync_folder, write_bytes
from fl_lightning.storage.run_layout import LEDGER

MAX_LINE = 2**30
"""Bytes of a line; 2 KiB for each of half a million clients."""


class ChainError(Exception):
    """The first thing in a chain that is not right; the message names it."""


@dataclass(frozen=True)
class Chain:
    """The lines of a ledger, as JSON values, and their digests.

    Attributes:
        lines: in their order.
        digests: of each line's bytes.
    """

    lines: list[dict[str, Any]]
    digests: list[str]

    @property
    def head(self) -> str:
        """The digest of the last line, which stands for the whole chain."""
        return self.digests[-1] if self.digests else NO_DIGEST

    @property
    def start(self) -> dict[str, Any]:
        """The first line."""
        return self.lines[0]

    @property
    def rounds(self) -> dict[int, dict[str, Any]]:
        """{round: its line}."""
        return {line["round"]: line for line in self.lines if line["kind"] == "round"}

    @property
    def end(self) -> dict[str, Any] | None:
        """The last line of a finished run; None if it has not ended."""
        return self.lines[-1] if self.lines and self.lines[-1]["kind"] == "end" else None


class LedgerFile:
    """Appends lines to a ledger.

    Args:
        path: of the file; it need not exist.

    Example:
        >>> import tempfile
        >>> ledger = LedgerFile(Path(tempfile.mkdtemp()) / LEDGER)
        >>> ledger.begin({"kind": "start", "run": "ab"})
        >>> ledger.append({"kind": "round", "round": 1})
        >>> [json.loads(line)["previous"][:4] for line in ledger.path.read_bytes().splitlines()]
        ['0000', '18ea']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._previous = NO_DIGEST

    def begin(self, values: Mapping[str, Any]) -> None:
        """Write the file anew with its first line, atomically."""
        line = canonical({**values, "previous": NO_DIGEST})
        write_bytes(self.path, line + b"\n")
        self._previous = bytes_digest(line)

    def truncate(self, round_num: int) -> bool:
        """Cut off what comes after the line of a round; 0 is the first line.

        Returns:
            Whether the file now ends with that line; if not, it is unchanged.
        """
        end, last_round, last = 0, None, NO_DIGEST
        for line in whole_lines(self.path.read_bytes() if self.path.is_file() else b""):
            try:
                values = parse_line(line)
            except ValueError:
                break
            number = 0 if values["kind"] == "start" else values.get("round")
            if values["kind"] == "end" or not isinstance(number, int) or number > round_num:
                break
            end, last_round, last = end + len(line) + 1, number, bytes_digest(line)
        if last_round != round_num:
            return False
        os.truncate(self.path, end)
        self._previous = last
        return True

    def append(self, values: Mapping[str, Any]) -> None:
        """Append a line, on the disk when this returns."""
        line = canonical({**values, "previous": self._previous})
        with self.path.open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path.parent)
        self._previous = bytes_digest(line)

    @property
    def previous(self) -> str:
        """The digest of the last line."""
        return self._previous


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        ValueError: if it is not an object with a kind, in its `canonical` form.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"expected at most {MAX_LINE:,} bytes, got {len(line):,}")
    try:
        values = json.loads(line, parse_constant=_refuse_constant)
        is_canonical = isinstance(values, dict) and canonical(values) == line
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON ({str(error)[:120]})") from error
    if not is_canonical:
        raise ValueError("expected JSON with sorted keys and without spaces, as the run wrote it")
    if values.get("kind") not in ("start", "round", "end"):
        raise ValueError(f"kind: expected start, round or end, got {str(values.get('kind'))[:40]!r}")
    return dict(values)


def whole_lines(data: bytes) -> Iterator[bytes]:
    """Lines without their newline; the rest after the last newline, which a kill has torn, is left out."""
    yield from data.split(b"\n")[:-1]


def read_chain(run_folder: Path) -> Chain:
    """The chain of a run as it is, without a check of its digests: `check_chain` makes that.

    Raises:
        InputError: if the file is missing or a line is not one of a ledger.
    """
    path = run_folder / LEDGER
    lines, digests = [], []
    for number, line in enumerate(whole_lines(read_ledger(path)), start=1):
        try:
            lines.append(parse_line(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}; expected the line as the run wrote it") from error
        digests.append(bytes_digest(line))
    if not lines:
        raise InputError(f"{path}: expected the lines of a run, got none")
    return Chain(lines, digests)


def read_ledger(path: Path) -> bytes:
    """The bytes of a ledger.

    Raises:
        InputError: if there is no such regular file.
    """
    try:
        if not path.is_file():
            raise OSError("no regular file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); expected the chain of a run's rounds, which runs "
            "with ledger.enabled: true write"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
