"""The sites' signatures of their updates: what a site needs to sign, and the check when an update arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fl_lightning.federation.protocol import ClientUpdate
from fl_lightning.network.validation import RejectedReply
from fl_lightning.provenance import salts
from fl_lightning.provenance.signing import is_signed
from fl_lightning.provenance.site_signatures import signed_statement, update_commitment


class UpdateSignatures:
    """Asks for signatures and checks them, in a run with a ledger.

    Args:
        secret: of the run's ledger.
    """

    def __init__(self, secret: str) -> None:
        self._secret, self._run = secret, salts.run_id(secret)

    def request(self, client_id: str) -> dict[str, Any]:
        """What a site needs to sign; the salt is of this site alone."""
        return {"run": self._run, "salt": salts.client_salt(self._secret, client_id)}

    def check(self, update: ClientUpdate, shared: Mapping[str, torch.Tensor], public_key: str) -> None:
        """Check the signature of an update that has arrived.

        Args:
            update: as received.
            shared: its tensors that the site has sent.
            public_key: with which the site has joined.

        Raises:
            RejectedReply: if it has none, or one of another key, run, round, site or update.
        """
        if not update.signature:
            raise RejectedReply("signature: expected the site's signature of its update, got none")
        salt = salts.client_salt(self._secret, update.client_id)
        commitment = update_commitment(salt, shared, update.num_examples, update.num_tokens, update.losses)
        statement = signed_statement(self._run, update.round_num, update.client_id, commitment)
        if not is_signed(public_key, update.signature, statement):
            raise RejectedReply(
                f"signature: expected one of the key {public_key[:16]}…, with which the site has joined, for this run, "
                "round and update, got another one"
            )
