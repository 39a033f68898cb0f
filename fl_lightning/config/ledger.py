"""The ``ledger`` block: the chain of rounds, and who signs it."""

from __future__ import annotations

from dataclasses import dataclass

from fl_lightning.config.checks import Block


@dataclass
class LedgerConfig(Block, key="ledger"):
    """``ledger.jsonl``: what went into each round and what came out, for the command verify."""

    enabled: bool = True
    """Write the ledger."""
    sign_key: str | None = None
    """File with the operator's Ed25519 key, which signs the last line; null leaves it unsigned."""
