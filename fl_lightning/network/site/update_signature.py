"""A site signs the updates that it sends, with a key of its own, so that the server cannot invent one.

The key is in the site's folder, ``sign.key`` (0600) and ``sign.key.pub``, and made on first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.federation.protocol import ClientUpdate
from fl_lightning.provenance.signing import key_at, public_key_of, sign
from fl_lightning.provenance.site_signatures import signed_statement, update_commitment

KEY_FILE = "sign.key"


class UpdateSigner:
    """Signs updates of one site.

    Args:
        folder: of the site.
        client_id: of the site.
    """

    def __init__(self, folder: Path, client_id: str) -> None:
        self._path, self._client_id = folder / KEY_FILE, client_id
        self._loaded: Any = None

    @property
    def public_key(self) -> str:
        """64 hexadecimal digits."""
        return public_key_of(self.key)

    def sign(self, update: ClientUpdate, shared: Mapping[str, torch.Tensor], ledger: object) -> ClientUpdate:
        """The update with this site's signature.

        Args:
            update: as it is sent.
            shared: its tensors as the server will decode them.
            ledger: ``run`` and ``salt`` of the server's ledger, as received with the task; None if it has no ledger.

        Raises:
            ValueError: if `ledger` is something else.
        """
        if ledger is None:
            return update
        if not isinstance(ledger, Mapping) or not _is_hex(ledger.get("run"), 32) or not _is_hex(ledger.get("salt"), 64):
            raise ValueError("ledger: expected run and salt in hexadecimal digits, got something else")
        numbers = update.num_examples, update.num_tokens, update.losses
        commitment = update_commitment(ledger["salt"], shared, *numbers)
        statement = signed_statement(ledger["run"], update.round_num, self._client_id, commitment)
        return replace(update, signature=sign(self.key, statement))

    @property
    def key(self) -> Any:
        """The private key, made on first use."""
        if self._loaded is None:
            self._loaded = key_at(self._path)
        return self._loaded


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None
