"""What a site remembers of its rounds with secure aggregation, on its disk: ``<run>/masked_rounds.json`` (0600).

Of each round the last attempt in which it took part, and the digest of the list of sites that it has signed. Both are
on the disk before keys or signatures leave the site. So a site that is killed and started again takes part in no
attempt twice, and a round that is repeated, after a kill of the server, can only be the same sum again: two sums of the
same updates would show their difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.network.masked_messages import AlreadySigned
from fl_lightning.storage.files import read_json, write_json

FILE = "masked_rounds.json"


class MaskRecord:
    """Attempts and signed sums of a site in one run.

    Args:
        folder: of the site and the run.

    Raises:
        InputError: if the file is damaged.

    Example:
        >>> import tempfile
        >>> record = MaskRecord(Path(tempfile.mkdtemp()))
        >>> record.join(3, attempt=1)
        >>> record.last_attempt(3), record.last_attempt(4)
        (1, 0)
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        content = read_json(self._path) if self._path.exists() else {"rounds": {}}
        rounds = content.get("rounds") if isinstance(content, dict) else None
        if not isinstance(rounds, dict) or not all(_is_entry(entry) for entry in rounds.values()):
            raise InputError(
                f"{self._path}: expected the rounds in which this site took part, got other content; restore the file "
                "as written"
            )
        self._rounds: dict[str, dict[str, Any]] = rounds

    def last_attempt(self, round_num: int) -> int:
        """The last attempt of a round in which the site took part; 0 for none."""
        return int(self._rounds.get(str(round_num), {"attempt": 0})["attempt"])

    def join(self, round_num: int, attempt: int) -> None:
        """Note that the site takes part in an attempt; on the disk when this returns."""
        entry = self._rounds.setdefault(str(round_num), {"attempt": 0, "signed": None})
        entry["attempt"] = attempt
        self._write()

    def sign(self, round_num: int, survivors: Collection[str]) -> None:
        """Note the sum whose list of sites is signed; on the disk when this returns.

        Raises:
            AlreadySigned: if the site has signed another sum of this round.
        """
        entry = self._rounds[str(round_num)]
        digest = hashlib.sha256("\n".join(sorted(survivors)).encode()).hexdigest()
        if entry["signed"] not in (None, digest):
            raise AlreadySigned(
                f"round {round_num}: expected the sum that this site has signed before, got one of other sites: the "
                "difference of two sums would show single updates"
            )
        entry["signed"] = digest
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"rounds": self._rounds}, secret=True)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"attempt", "signed"} or type(entry["attempt"]) is not int:
        return False
    return entry["signed"] is None or isinstance(entry["signed"], str)
