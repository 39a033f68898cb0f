"""The mean of what the clients of a department keep for themselves, such as B under ``share: a``.

Few factors are added anew in each round. Of many there is a running sum, so that a round reads those of the clients
that have trained in it, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState
from fl_lightning.storage.offload import OffloadedState

MAX_ADDED_ANEW = 64
"""With more clients than this that have a factor, a department has a running sum."""

_DIGITS = 33
"""Binary digits behind the point in the second part of a sum; the third has twice as many."""


class RunningSum:
    """``Σ w_c x_c`` of states from which a state can be taken out again, without a trace.

    Each product is split into an integer, a multiple of 2⁻³³ and one of 2⁻⁶⁶, to which it is rounded. Sums of each are
    exact in fp64 while they are below 2⁵² (in units of the part) and there are at most a million states. So the sum
    depends on what is in it, not on the order in which states came and went, and a resumed run may add it up anew.

    Attributes:
        total: Σ w_c.

    Example:
        >>> running = RunningSum()
        >>> for value, weight in ((0.1, 1), (1e6, 3), (4.0, 3), (1e6, -3)):
        ...     running.add({"lora_B": torch.tensor([value])}, weight)
        >>> running.mean()["lora_B"].item(), running.total
        (3.0250000953674316, 4)
    """

    def __init__(self) -> None:
        self.total = 0
        self._parts: dict[str, torch.Tensor] = {}

    def add(self, state: Mapping[str, torch.Tensor], weight: int) -> None:
        """Add a state of finite fp32 tensors, or take one out again with its negative weight."""
        in_memory = state.in_memory() if isinstance(state, OffloadedState) else state
        for name, tensor in in_memory.items():
            rest = tensor.double() * weight
            parts = self._parts.setdefault(name, torch.zeros(3, *tensor.shape, dtype=torch.float64))
            for part, digits in zip(parts, (0, _DIGITS, 2 * _DIGITS), strict=True):
                rounded = torch.round(rest * 2.0**digits) * 2.0**-digits
                part += rounded
                rest -= rounded
        self.total += weight

    def copy(self) -> RunningSum:
        """Another one with the same sums."""
        other = RunningSum()
        other.total, other._parts = self.total, {name: parts.clone() for name, parts in self._parts.items()}
        return other

    def mean(self) -> LoraState:
        """``Σ w_c x_c / Σ w_c``, fp32."""
        return {name: ((p[2] + p[1] + p[0]) / self.total).float() for name, p in self._parts.items()}


def next_sums(
    sums: Mapping[str, RunningSum],
    before: tuple[Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, int]],
    after: tuple[Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, int]],
    trained: Iterable[str],
    departments: Mapping[str, Sequence[str]],
) -> dict[str, RunningSum]:
    """{department: sum of its clients' personal factors} after a round, of departments with many.

    Args:
        sums: before the round; a sum that is not there is added up anew.
        before: {client_id: personal factor} and {client_id: num_examples} before the round.
        after: both after it.
        trained: ids of the clients whose factor is another one now.
        departments: {department: ids of its clients that have a factor after the round}.
    """
    of_round: dict[str, list[str]] = {}
    for client_id in trained:
        of_round.setdefault(client_id.split("/", 1)[0], []).append(client_id)
    result = dict(sums)
    for name, client_ids in departments.items():
        if len(client_ids) <= MAX_ADDED_ANEW:
            continue
        if name not in sums:
            result[name], added = RunningSum(), client_ids
        elif added := of_round.get(name, []):
            result[name] = sums[name].copy()
            for client_id in filter(before[0].__contains__, added):
                result[name].add(before[0][client_id], -before[1][client_id])
        for client_id in added:
            result[name].add(after[0][client_id], after[1][client_id])
    return result


def mean_personal(
    personal: Mapping[str, Mapping[str, torch.Tensor]], examples: Mapping[str, int], client_ids: Iterable[str]
) -> LoraState:
    """Example-weighted mean of the personal factors of a department's clients, fp32, added up anew.

    Args:
        personal: {client_id: factor}, those of other departments included.
        examples: {client_id: num_examples}.
        client_ids: of the department; clients without a personal factor are skipped.

    Returns:
        The mean; empty if none of the clients has a personal factor.
    """
    mean = WeightedMean()
    for client_id in sorted(client_ids):
        if client_id in personal:
            state = personal[client_id]
            mean.add(state.in_memory() if isinstance(state, OffloadedState) else state, examples[client_id])
    return {name: tensor.float() for name, tensor in mean.value().items()} if mean.total else {}
