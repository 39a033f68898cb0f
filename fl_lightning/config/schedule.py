"""The block ``federation.schedule``: when departments step, and how fast the clients of a simulation are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from fl_lightning.config.checks import (
    Block,
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check,
)

StalenessName: TypeAlias = Literal["polynomial", "constant"]
"""Weights of `fl_lightning.aggregation.staleness`."""


@dataclass
class ClientProfilesConfig(Block, key="federation.schedule.clients"):
    """Speed, bandwidth and availability of the clients, from which virtual time is computed; nothing waits for it."""

    speed: Literal["constant", "log_normal", "trace"] | None = None
    """constant: all clients are equally fast; log_normal: their speeds are drawn; trace: a file has their profiles.
    null computes no virtual time."""
    tokens_per_second: PositiveFloat = 1000.0
    """Training tokens per second of a client; under log_normal the median."""
    sigma: NonNegativeFloat = 1.0
    """log_normal: standard deviation of the logarithm of the speeds."""
    slow_share: Fraction = 0.0
    """Share of all clients that are slow_factor times slower, drawn once."""
    slow_factor: Annotated[float, Interval(1)] = 20.0
    """How many times slower they are."""
    bandwidth_kib: PositiveFloat | None = None
    """KiB per second of a client, up and down alike; null sends in no time."""
    available_hours: Annotated[float, Interval(0, 24, open_low=True)] = 24.0
    """Hours of a day in which a client can start a fit, from an hour that is drawn for each client; a fit that has
    started is finished."""
    trace: str | None = None
    """trace: a JSON Lines file of profiles, see docs/asynchronous.md."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is a trace where one is read."""
        super().__post_init__()
        expected = "a file of profiles" if self.speed == "trace" else "null unless speed is trace"
        check((self.trace is not None) == (self.speed == "trace"), f"{self.block_key}.trace", expected, self.trace)


@dataclass
class ScheduleConfig(Block, key="federation.schedule"):
    """Rounds that wait for their clients, or departments that step as soon as their buffers are full."""

    mode: Literal["sync", "buffered"] = "sync"
    """sync: a round takes updates of all departments and waits for them; buffered: a round is one step of the
    department whose buffer is full first, and clients train on while others are late: in one process by their
    profiles in virtual time, between machines (server, client) in the order in which sites answer."""
    buffer: PositiveInt = 10
    """buffered: updates that a department waits for before it steps; at most as many as it has clients."""
    concurrency: PositiveInt | None = None
    """buffered: clients of a department that train at the same time; null takes all. Two or three times `buffer` learn
    best (docs/asynchronous.md)."""
    staleness: StalenessName = "polynomial"
    """buffered: weight of an update that is τ steps of its department old: polynomial (1 + τ)^-0.5, constant 1."""
    max_staleness: NonNegativeInt | None = None
    """buffered: drop an update that is more steps old; null drops none."""
    steps_per_clustering: PositiveInt | None = None
    """buffered: steps, of all departments together, after which departments are clustered and mixed; null takes the
    number of departments."""
    over_select: NonNegativeFloat = 0.0
    """sync: ask this share of clients more, and take those that finish first."""
    deadline: PositiveFloat | None = None
    """sync: virtual seconds after which a round waits for no more clients; null waits for all."""
    clients: ClientProfilesConfig = field(default_factory=ClientProfilesConfig)
    """How fast the clients are, in virtual time."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the keys go together."""
        super().__post_init__()
        is_sync = self.mode == "sync"
        expected = "the default, or mode: sync (a buffered department waits for nobody)"
        check(is_sync or self.over_select == 0, "federation.schedule.over_select", expected, self.over_select)
        check(is_sync or self.deadline is None, "federation.schedule.deadline", expected, self.deadline)
        if self.over_select > 0 or self.deadline is not None:
            self._check_time("over_select and deadline go by")

    def check_in_one_process(self) -> None:
        """Check that there is a time by which clients in one process are late; between machines time is real.

        Raises:
            InputError: if there is none.
        """
        if self.mode == "buffered":
            self._check_time("buffered steps in one process go by")

    def _check_time(self, choices: str) -> None:
        expected = f"constant, log_normal or trace, which give the virtual time that {choices}"
        check(self.clients.speed is not None, "federation.schedule.clients.speed", expected, self.clients.speed)

    def clusters_in(self, round_num: int, num_departments: int) -> bool:
        """Whether departments are clustered and mixed in a round.

        Example:
            >>> ScheduleConfig().clusters_in(1, num_departments=4)
            True
        """
        return self.mode == "sync" or round_num % (self.steps_per_clustering or num_departments) == 0
