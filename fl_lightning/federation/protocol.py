"""What the trainer and its clients exchange, wherever the clients run: tasks out, updates and metrics back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.linalg.own_mixture import used_adapter
from fl_lightning.state import Factor, LoraState

OnStep: TypeAlias = Callable[[Sequence[str], float, int], None]
"""Called after each optimizer step: client ids of the cohort, share of the fit done in (0, 1], tokens of the step."""

EvaluationJob: TypeAlias = tuple[LoraState, str]
"""(adapter, client_id): evaluate the adapter on the client's records."""

Split: TypeAlias = Literal["eval", "selection"]
"""A client's held-out records, or those that choose between adapters."""


@dataclass(frozen=True)
class ClientTask:
    """One client's fit in one round: everything that a client needs to know.

    Attributes:
        client_id: ``department/client``.
        round_num: from 1.
        start: the state it starts from.
        run_seed: every random draw is seeded by a hash of this, `seed_round` and the client.
        evaluate: whether to evaluate the fitted adapter on the client's held-out records.
        trainable_factor: the factor that is trained; the other stays as in `start`.
        relative_scaling: the client's lora_alpha / r over that of adapters without a profile.
        frozen_product: a product added to the trained one and not changed, at the common scaling; empty for none. If
            `start` has an α, the two are weighed by it and 1 − α.
        is_own: whether it is the fit of the client's own adapter, which is never averaged.
        anchor: the state that the fit is pulled towards; empty for none.
        anchor_strength: λ of the pull ``λ / 2 · ‖θ − anchor‖²``.
        alpha_rate: rate of the step that the first optimizer step takes on α, if `start` has one; 0 leaves it.
        started_round: the round in which it would have ended if nobody were late; None if it is not late.
    """

    client_id: str
    round_num: int
    start: Mapping[str, torch.Tensor]
    run_seed: int
    evaluate: bool = False
    trainable_factor: Factor = "all"
    relative_scaling: float = 1.0
    frozen_product: Mapping[str, torch.Tensor] = field(default_factory=dict)
    is_own: bool = False
    anchor: Mapping[str, torch.Tensor] = field(default_factory=dict)
    anchor_strength: float = 0.0
    alpha_rate: float = 0.0
    started_round: int | None = None

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]

    @property
    def seed_round(self) -> int:
        """The round that seeds are hashed from: that of its start, so that draws do not depend on when it arrives."""
        return self.round_num if self.started_round is None else self.started_round

    def adapter(self, state: Mapping[str, torch.Tensor]) -> LoraState:
        """The whole adapter for a state trained under this task, at the common scaling."""
        return used_adapter(state, self.frozen_product, self.relative_scaling)


@dataclass(frozen=True)
class Metrics:
    """Sums over held-out records, so that those of several clients can be added.

    Attributes:
        loss_sum: cross-entropy over the target tokens, in nats.
        correct: target tokens that were the most likely token.
        num_tokens: target tokens.
        num_examples: records.
    """

    loss_sum: float
    correct: float
    num_tokens: int
    num_examples: int

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.num_tokens + other.num_tokens,
            self.num_examples + other.num_examples,
        )


@dataclass(frozen=True)
class ClientUpdate:
    """The result of a client's fit.

    Attributes:
        client_id: ``department/client``.
        round_num: of the task.
        state: all LoRA tensors after the fit, fp32 on the CPU.
        num_examples: training records, the aggregation weight.
        num_tokens: tokens trained on, over all epochs.
        losses: mean loss of each optimizer step.
        seconds: wall time of the fit; a cohort's time is divided by tokens.
        metrics: of the adapter on the client's held-out records, if the task asked for them.
        is_own: whether it is the client's own adapter, which is never averaged.
        signature: of the client's site, 128 hexadecimal digits, see `fl_lightning.provenance.site_signatures`; empty
            in one process and without a ledger.
    """

    client_id: str
    round_num: int
    state: LoraState
    num_examples: int
    num_tokens: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    metrics: Metrics | None = None
    is_own: bool = False
    signature: str = ""

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]


class CohortJournal(Protocol):
    """Updates of the cohorts that were fitted earlier in this round, perhaps by a process that was killed."""

    def replay(self, cohort: Sequence[ClientTask]) -> list[ClientUpdate] | None:
        """The recorded updates of exactly this cohort, in its order; None if there are none."""
        ...

    def record(self, updates: Sequence[ClientUpdate]) -> None:
        """Keep a cohort's updates."""
        ...

    def keep(self, round_num: int, name: str, header: Any, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Keep a JSON value and tensors of this round under a name."""
        ...

    def kept(self, round_num: int, name: str) -> tuple[Any, list[LoraState]] | None:
        """The JSON value and tensors of that name; None if there are none."""
        ...


class ClientTransport(Protocol):
    """Reaches the clients: in this process, in several, or over a network."""

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Updates of the tasks, in their order; those in the journal are not computed again."""
        ...

    def evaluate(self, jobs: Iterable[EvaluationJob], split: Split = "eval") -> list[Metrics]:
        """Metrics of adapters on clients' held-out or selection records, in the order of the jobs."""
        ...

    def target_losses_of(
        self, states: Sequence[LoraState], client_ids: Sequence[str], split: Split
    ) -> npt.NDArray[np.float64]:
        """Losses of the target tokens of some clients' records under several adapters, in nats, (tokens, adapters)."""
        ...


TASK_STATES = ("start", "frozen_product", "anchor")
"""Fields of a task that hold tensors, in the order in which they are sent."""


def header_of(item: ClientTask | ClientUpdate) -> dict[str, Any]:
    """A task or an update without its tensors, as JSON values."""
    values = {name: value for name, value in vars(item).items() if name not in (*TASK_STATES, "state")}
    if values.get("metrics") is not None:
        values["metrics"] = vars(values["metrics"])
    return values


def update_from(header: dict[str, Any], state: LoraState) -> ClientUpdate:
    """The update from its `header_of` and its tensors."""
    metrics = header.pop("metrics")
    return ClientUpdate(**header, state=state, metrics=None if metrics is None else Metrics(**metrics))
