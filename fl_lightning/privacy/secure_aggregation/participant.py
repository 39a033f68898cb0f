"""A client's identity, the identities of the others, and the limits below which it does not take part.

The roster must come from somebody other than the server: who can replace an identity in it can read that client's
shares and pose as it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_lightning.privacy.secure_aggregation.agreement import identity_key
from fl_lightning.privacy.secure_aggregation.terms import NoiseTerms, SecureAggregationError, Terms


@dataclass
class Participant:
    """What a client keeps between rounds.

    Attributes:
        client_id: its name.
        identity: its private Ed25519 key, 32 bytes.
        roster: {client: its public identity}, those of all clients that may take part.
        min_clients: the client takes no part in a sum of fewer.
        threshold: nor in a round with a lower one, see `terms`.
        last_round: {(run, group): the last round it joined}.
        noise: nor does it in a round with another clipping norm, less noise, or noise for fewer curious clients.

    Raises:
        ValueError: if the roster has another identity for this client.
    """

    client_id: str
    identity: bytes = field(repr=False)
    roster: Mapping[str, bytes]
    min_clients: int = 3
    threshold: float = 2 / 3
    last_round: dict[tuple[str, str], int] = field(default_factory=dict)
    noise: NoiseTerms | None = None

    def __post_init__(self) -> None:
        """Check that the client is in the roster."""
        if self.roster.get(self.client_id) != identity_key(self.identity):
            raise ValueError(f"roster: expected the identity of {self.client_id}, got none or another")

    def join(self, terms: Terms) -> None:
        """Accept the terms of a round; each round once, since two sums of the same updates show their difference.

        Raises:
            SecureAggregationError: if the terms are below this client's limits, or the round is not a new one.
        """
        if terms.min_clients < self.min_clients:
            raise self.refuse(f"expected sums of at least {self.min_clients} clients, got {terms.min_clients}")
        if terms.threshold < self.threshold:
            raise self.refuse(f"expected a threshold of at least {self.threshold:.3g}, got {terms.threshold:.3g}")
        if self.noise is not None and (terms.noise is None or terms.noise.is_weaker_than(self.noise)):
            raise self.refuse(f"expected at least {self.noise}, got {terms.noise or 'no noise'}")
        key = terms.run, terms.group
        if terms.round_num <= self.last_round.get(key, 0):
            raise self.refuse(f"expected a round after {self.last_round[key]}, got {terms.round_num}")
        self.last_round[key] = terms.round_num

    def refuse(self, reason: str) -> SecureAggregationError:
        """The error of a refusal."""
        return SecureAggregationError(f"{self.client_id} refuses: {reason}")
