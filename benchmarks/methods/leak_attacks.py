"""Attacks of `benchmarks/methods/leaks.py`: which canaries and which records have trained an adapter?

They are those of the command ``audit``. Scores of a run's canaries are ranked within an adapter, half of them are
guessed. Counts of several seeds are added before a bound is computed: their canaries are different, so together they
are the canaries of one mechanism that has run on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl_lightning.data.canaries import ClientCanaries
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.input_energy import input_energy
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.privacy.audit.membership import membership_test
from fl_lightning.privacy.audit.one_run import epsilon_lower_bound, guess_coins, provable_epsilon
from fl_lightning.state import LoraState, is_lora_a
from fl_lightning.training.local_clients import LocalClients

Adapters = Sequence[tuple[Sequence[str], LoraState]]
"""(clients whose records may be in it, an adapter that somebody sees)."""
Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of canaries, of records that have trained, and of held-out ones."""


@dataclass
class Found:
    """What an attack has found, over adapters and seeds."""

    canaries: int = 0
    guesses: int = 0
    correct: int = 0
    members: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    ranked: list[list[float]] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Add what was found in another seed."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_dict(self, delta: float) -> dict[str, Any]:
        """The figures, with bounds at δ."""
        counts = {"canaries": self.canaries, "guesses": self.guesses, "correct": self.correct}
        return {
            **counts,
            "epsilon": epsilon_lower_bound(**counts, delta=delta),
            "provable": provable_epsilon(self.canaries, self.guesses, delta),
            "membership": membership_test(np.array(self.members), np.array(self.others), seed=0).to_dict(),
        }

    def coins_drawn_anew(self, draws: int, delta: float) -> dict[str, float]:
        """What the same guesses find of coins that nothing was trained by: a check of guesses and bound."""
        generator = np.random.default_rng(0)
        counts = np.zeros(draws, int)
        for scores in self.ranked:
            guesses = guess_coins(np.array(scores), round(len(scores) / 2))
            coins = generator.integers(0, 2, (draws, len(scores)))
            counts += (np.where(coins, 1, -1) == guesses).sum(1)
        known = {int(n): epsilon_lower_bound(self.canaries, self.guesses, int(n), delta) for n in set(counts)}
        return {
            "draws": draws,
            "correct": float(counts.mean() / self.guesses),
            "above_zero": float(np.mean([known[int(n)] > 0 for n in counts])),
        }


class Attacker:
    """Knows the base model, the canaries and the records of a run, and not which of them have trained.

    Args:
        clients: of the run, with its model.
        data: {client_id: records}, with canaries.
        canaries: {client_id: canaries}.
        initial: an adapter that changes nothing; None takes that of the model.
    """

    def __init__(
        self,
        clients: LocalClients,
        model: Any,
        data: Mapping[str, ClientData],
        canaries: Mapping[str, ClientCanaries],
        initial: LoraState | None = None,
    ) -> None:
        self._clients, self._model, self._canaries = clients, model, canaries
        self._initial = collect_lora_state(model) if initial is None else initial
        self._data, self._base = data, dict[str, Scores]()

    def attack(self, adapters: Adapters, *, rows_of_a: bool = False) -> Found:
        """Guess from adapters.

        Args:
            adapters: what is seen.
            rows_of_a: look at the rows of A only, by the energy of the records' inputs in them, instead of losses.
        """
        found = Found()
        for client_ids, state in adapters:
            scores = [self._energies(c, state) if rows_of_a else self._falls(c, state) for c in client_ids]
            of_canaries, members, others = (np.concatenate(some) for some in zip(*scores, strict=True))
            coins = np.array([coin for c in client_ids for coin in self._canaries[c].coins])
            guesses = guess_coins(of_canaries, round(len(coins) / 2))
            correct = int((guesses == np.where(coins, 1, -1)).sum())
            counts = len(coins), int(np.count_nonzero(guesses)), correct
            found.add(Found(*counts, members.tolist(), others.tolist(), [of_canaries.tolist()]))
        return found

    def held_out_loss(self, adapters: Adapters) -> float:
        """Mean over clients of the loss on their held-out records."""
        means = []
        for client_ids, state in adapters:
            for client_id in client_ids:
                sums = self._clients.evaluate_records(state, list(self._data[client_id].eval))
                means.append(float(sums[:, 0].sum() / sums[:, 2].sum()))
        return float(np.mean(means))

    def _records(self, client_id: str) -> tuple[list[Example], list[Example], list[Example]]:
        client, canaries = self._data[client_id], self._canaries[client_id]
        trained = list(client.train)[: len(client.train) - len(canaries.included)]
        return list(canaries.records), trained, list(client.eval)

    def _falls(self, client_id: str, state: LoraState) -> Scores:
        """How far the losses of a client's canaries and records are below the base model's."""
        if client_id not in self._base:
            self._base[client_id] = self._parts(client_id, self._losses(client_id, self._initial))
        after = self._parts(client_id, self._losses(client_id, state))
        canaries, members, others = (b - a for b, a in zip(self._base[client_id], after, strict=True))
        return canaries, members, others

    def _losses(self, client_id: str, state: LoraState) -> np.ndarray:
        sums = self._clients.evaluate_records(state, sum(self._records(client_id), []))
        return sums[:, 0] / np.maximum(sums[:, 2], 1)

    def _energies(self, client_id: str, state: LoraState) -> Scores:
        """How much of the inputs of a client's canaries and records the rows of A have moved towards."""
        moved = {name: tensor - self._initial[name] for name, tensor in state.items() if is_lora_a(name)}
        return self._parts(client_id, input_energy(self._model, moved, sum(self._records(client_id), [])))

    def _parts(self, client_id: str, values: np.ndarray) -> Scores:
        canaries, trained, _ = map(len, self._records(client_id))
        return values[:canaries], values[canaries : canaries + trained], values[canaries + trained :]
