"""The rounds that have been released so far, and the key from which noise is drawn."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fl_lightning.privacy.accountant import epsilon, epsilon_of_shares


@dataclass(frozen=True)
class Ledger:
    """A federation's privacy account.

    Attributes:
        key: secret; the noise of each round and department is drawn from a hash of it.
        clips: {department: its clipping norm C in the next round}.
        rounds: {client_id: number of rounds in which it was asked and something was released}.
    """

    key: str
    clips: dict[str, float]
    rounds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, departments: Iterable[str], clip: float, noise_seed: int | None = None) -> Ledger:
        """An empty account. Without a seed the key is drawn from the system's entropy.

        Example:
            >>> Ledger.begin(["hr"], 1.0).key == Ledger.begin(["hr"], 1.0).key
            False
        """
        key = secrets.token_hex(32) if noise_seed is None else f"seed {noise_seed}"
        return cls(key, dict.fromkeys(sorted(departments), clip))

    def key_of(self, round_num: int, department: str) -> str:
        """The key of one release, from which its noise is drawn: 64 hexadecimal digits."""
        return hashlib.sha256(f"{self.key}/{round_num}/{department}".encode()).hexdigest()

    def released(self, asked: Iterable[str], clips: Mapping[str, float]) -> Ledger:
        """The account after some departments have released a round.

        Args:
            asked: the clients that were asked, in all these departments, whether they answered or not.
            clips: {department: C of its next round}.
        """
        rounds = {**self.rounds, **{client_id: self.rounds.get(client_id, 0) + 1 for client_id in asked}}
        return replace(self, clips={**self.clips, **clips}, rounds=rounds)

    def epsilons(self, noise_multiplier: float, delta: float, *, in_shares: bool = False) -> dict[str, float]:
        """{department: ε of its client that was asked in the most rounds}, of the departments that have released.

        The clients that are asked are drawn from the run's seed, which clients know. So no amplification by sampling is
        counted, and a client pays for the rounds in which it was asked.

        Args:
            noise_multiplier: z.
            delta: δ.
            in_shares: whether clients have added the noise, as shares in a masked sum.
        """
        most: dict[str, int] = {}
        for client_id, count in self.rounds.items():
            department = client_id.split("/", 1)[0]
            most[department] = max(count, most.get(department, 0))
        costs = {
            count: epsilon_of_shares(noise_multiplier, count, delta)
            if in_shares
            else epsilon(noise_multiplier, count, delta, clients=1, asked=1)
            for count in set(most.values())
        }
        return {department: costs[count] for department, count in most.items()}
