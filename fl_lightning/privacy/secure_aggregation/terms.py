"""What all clients of a round of secure aggregation agree on.

Everything that is signed, and every key that is derived, contains `Terms.digest`. So a message of another round, of
another department, or of a round with other settings is worth nothing in this one.

**Thresholds.** Of n clients among whom a secret is shared, t = ⌊threshold · n⌋ + 1 restore it. The server can learn
a single update only if it gets t shares of a client's own mask *and* t shares of its key. An honest client gives one of
the two. So if c of the n work together with the server, it needs ``2 (t − c) ≤ n − c``; with ``threshold: 2/3`` it
cannot, as long as less than a third of the n do. The price: a round fails if a third of the n drop out.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

from fl_lightning.errors import RunError

_PROTOCOL = b"fl-lightning secure aggregation 1"

MAX_CLIENTS = 100_000
"""Most clients of a round."""


class SecureAggregationError(RunError):
    """A party of the protocol refuses to continue; nothing is learned of any single update."""


@dataclass(frozen=True)
class NoiseTerms:
    """Differential privacy by noise in shares, see `noise_shares`.

    Attributes:
        clip: C, norm to which each client clips its update.
        multiplier: z, standard deviation in clipping norms of the noise that a sum has at worst; 0 only clips.
        curious: clients of a sum that may tell their own noise to each other and to the server.

    Raises:
        ValueError: if a number is out of range.
    """

    clip: float
    multiplier: float
    curious: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.clip > 0 and math.isfinite(self.clip)):
            raise ValueError(f"clip: expected a positive finite number, got {self.clip}")
        if not (self.multiplier >= 0 and math.isfinite(self.multiplier)):
            raise ValueError(f"noise_multiplier: expected a finite number of at least 0, got {self.multiplier}")
        if self.curious < 0:
            raise ValueError(f"curious_clients: expected at least 0, got {self.curious}")

    def is_weaker_than(self, other: NoiseTerms) -> bool:
        """Whether some protection is less than another's.

        Example:
            >>> NoiseTerms(1.0, 1.0).is_weaker_than(NoiseTerms(1.0, 2.0))
            True
        """
        return self.multiplier < other.multiplier or self.curious < other.curious or self.clip != other.clip


@dataclass(frozen=True)
class Terms:
    """The terms of one round.

    Attributes:
        run: name of the run.
        group: whose sum is taken, a department.
        round_num: from 1.
        invited: number of clients that may take part.
        size: elements of an update.
        bound: largest absolute value of an element, before it is multiplied by the weight.
        max_weight: largest weight of a client.
        threshold: share of the clients that must stay, in [0.5, 1).
        min_clients: clients in a sum, at least.
        layout: names and shapes of the tensors, or a digest of them.
        noise: that clients add; None without. They clip then, so that `bound` does not count, and weigh 1 each.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> terms = Terms("run", "hr", 1, invited=4, size=10)
        >>> terms.shares_needed(4), terms.clients_needed, terms.digest == Terms("run", "hr", 2, 4, 10).digest
        (3, 3, False)
    """

    run: str
    group: str
    round_num: int
    invited: int
    size: int
    bound: float = 4.0
    max_weight: int = 1024
    threshold: float = 2 / 3
    min_clients: int = 3
    layout: str = ""
    noise: NoiseTerms | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        ok = {
            "threshold: expected a number in [0.5, 1)": 0.5 <= self.threshold < 1,
            "min_clients: expected at least 2": self.min_clients >= 2,
            f"invited: expected 2 to {MAX_CLIENTS:,} clients": 2 <= self.invited <= MAX_CLIENTS,
            "size: expected at least 1": self.size >= 1,
            "bound: expected a positive finite number": self.bound > 0 and math.isfinite(self.bound),
            "max_weight: expected at least 1": self.max_weight >= 1,
            "max_weight: expected a sum of weights below 2³¹": self.max_weight * self.invited < 2**31,
        }
        for expected, fits in ok.items():
            if not fits:
                raise ValueError(f"{expected}, got {getattr(self, expected.split(':')[0])}")
        if self.noise is None:
            return
        if self.max_weight != 1:
            raise ValueError(f"max_weight: expected 1 with noise, got {self.max_weight}")
        if (needed := self.clients_needed) <= self.noise.curious:
            raise ValueError(f"curious_clients: expected fewer than the {needed} of a sum, got {self.noise.curious}")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all terms, 32 bytes: the id of the round."""
        values = (
            self.run,
            self.group,
            self.round_num,
            self.invited,
            self.size,
            self.bound.hex(),
            self.max_weight,
            self.threshold.hex(),
            self.min_clients,
            self.layout,
            *(() if self.noise is None else (self.noise.clip.hex(), self.noise.multiplier.hex(), self.noise.curious)),
        )
        return hashlib.sha256(_encode(_PROTOCOL, *values)).digest()

    def context(self, purpose: str, *parts: str | bytes) -> bytes:
        """The bytes that are signed, or that keys are derived with, for a purpose in this round."""
        return _encode(_PROTOCOL, self.digest, purpose, *parts)

    def shares_needed(self, holders: int) -> int:
        """How many of n holders of shares restore a secret, t."""
        return min(holders, math.floor(self.threshold * holders + 1e-9) + 1)

    @property
    def clients_needed(self) -> int:
        """How many clients a sum needs."""
        return max(self.min_clients, self.shares_needed(self.invited))


def _encode(*parts: str | int | bytes) -> bytes:
    """Parts with type and length, so that no two sequences have the same bytes."""
    encoded = b""
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        kind = type(part).__name__[:1].encode()
        encoded += kind + len(raw).to_bytes(8, "big") + raw
    return encoded
