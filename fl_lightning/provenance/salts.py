"""The secret of a run, and commitments: digests that nobody can guess from, and that one client can check.

Runs are deterministic: whoever guesses a client's records can fit them again and compare. So a ledger has no digest of
an update or of records, but an HMAC of it under the client's salt. A salt shows its client whether its records are in
the chain. It shows nothing about the records of others, whose salts cannot be computed from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Literal

from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_secret, read_text, write_secret
from fl_lightning.storage.run_layout import LEDGER_SECRET

Purpose = Literal["update", "own", "records", "starts"]
"""What a commitment is of; equal digests have unequal commitments for two purposes."""

_HEX = re.compile(r"[0-9a-f]{64}\n?")


def make_secret(run_folder: Path) -> str:
    """The secret of a run, 64 hexadecimal digits; drawn and written (0600) if it has none."""
    path = run_folder / LEDGER_SECRET
    if not path.exists():
        write_secret(path, f"{secrets.token_hex(32)}\n".encode())
    return read_secret(run_folder)


def read_secret(run_folder: Path) -> str:
    """The secret of a run, see `read_key`."""
    return read_key(run_folder / LEDGER_SECRET)


def read_key(path: Path) -> str:
    """A secret of 64 hexadecimal digits, or a client's salt.

    Raises:
        InputError: if the file is missing, others may read it, or it holds something else.
    """
    check_secret(path)
    text = read_text(path, "64 hexadecimal digits")
    if not _HEX.fullmatch(text):
        raise InputError(f"{path}: expected 64 hexadecimal digits, got something else; use the file as it was written")
    return text.strip()


def run_id(secret: str) -> str:
    """The id of a run, 32 hexadecimal digits, which says nothing about its secret."""
    return _hmac(secret, "run")[:32]


def client_salt(secret: str, client_id: str) -> str:
    """The salt of one client, 64 hexadecimal digits.

    Example:
        >>> client_salt("ab" * 32, "hr/a") == client_salt("ab" * 32, "hr/b")
        False
    """
    return _hmac(secret, f"salt {client_id}")


def commit(salt: str, purpose: Purpose, digest: str) -> str:
    """The commitment to a digest under a client's salt."""
    return _hmac(_hmac(salt, purpose), digest)


def _hmac(key: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()
