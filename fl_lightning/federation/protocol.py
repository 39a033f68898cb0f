"""What travels between the trainer and its clients, wherever they are: tasks out, updates and figures back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch

from fl_lightning.linalg.adapter_algebra import side_by_side
from fl_lightning.state import Factor, LoraState

OnStep: TypeAlias = Callable[[Sequence[str], float, int], None]
"""Called after each optimizer step with the cohort's client ids, the share done in (0, 1], and the step's tokens."""

EvaluationJob: TypeAlias = tuple[LoraState, str]
"""(adapter, client_id): the adapter's figures on the client's held-out records are wanted."""


@dataclass(frozen=True)
class ClientTask:
    """One client's fit in one round: everything a client needs to be told.

    Attributes:
        start: the state it starts from.
        run_seed: the client's draws come from seeds hashed from it, the round and the client.
        evaluate: whether the fitted adapter is to be evaluated on the client's held-out records.
        trains: the factor that is trained; the other one stays as it is in `start`.
        gain: the client's scale lora_alpha / r over that of adapters without a profile.
        frozen: a product that stands beside what is trained and stays as it is, at the common scale; empty for none.
    """

    client_id: str
    round_num: int
    start: Mapping[str, torch.Tensor]
    run_seed: int
    evaluate: bool = False
    trains: Factor = "all"
    gain: float = 1.0
    frozen: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]

    def adapter(self, state: Mapping[str, torch.Tensor]) -> LoraState:
        """The whole adapter that a trained state of this task stands for, at the common scale."""
        if not self.frozen:
            return side_by_side([state], [self.gain])
        return side_by_side([state, self.frozen], [self.gain, 1.0])


@dataclass(frozen=True)
class Metrics:
    """Figures of an adapter on held-out records: sums, so that they add up over clients."""

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
    """What comes back from a client.

    Attributes:
        state: all LoRA tensors after the fit, fp32 on the CPU.
        num_examples: training records, the aggregation weight.
        num_tokens: tokens trained on, over all epochs.
        losses: mean loss of each optimizer step.
        seconds: wall time of the fit; a cohort's time is shared out by tokens.
        metrics: the adapter's figures on the client's own held-out records, where the task asked for them.
    """

    client_id: str
    round_num: int
    state: LoraState
    num_examples: int
    num_tokens: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    metrics: Metrics | None = None

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]


class CohortJournal(Protocol):
    """Cohorts that were fitted before this process began, or are fitted now."""

    def recall(self, cohort: Sequence[ClientTask]) -> list[ClientUpdate] | None:
        """The updates of just these clients together, in order; None where there are none."""
        ...

    def record(self, updates: Sequence[ClientUpdate]) -> None:
        """Keep a cohort's updates."""
        ...


class Clients(Protocol):
    """Where updates come from: this process, several, or a network."""

    def exchange(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Tasks out, updates back, in the order of the tasks; what the journal has is not asked for again."""
        ...

    def evaluate(self, jobs: Iterable[EvaluationJob]) -> list[Metrics]:
        """Adapters on clients' held-out records, in the order of the jobs."""
        ...


def header_of(item: ClientTask | ClientUpdate) -> dict[str, Any]:
    """A task or an update without its tensors, as JSON values."""
    values = {name: value for name, value in vars(item).items() if name not in ("start", "state", "frozen")}
    if values.get("metrics") is not None:
        values["metrics"] = vars(values["metrics"])
    return values


def update_from(header: dict[str, Any], state: LoraState) -> ClientUpdate:
    """The update that `header_of` was made from."""
    metrics = header.pop("metrics")
    return ClientUpdate(**header, state=state, metrics=None if metrics is None else Metrics(**metrics))
