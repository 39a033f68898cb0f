"""Buffered rounds between machines: asks sites as they get ready, and steps a department when its buffer is full.

The order of events is that in which updates arrive. It is on disk: checkpoints hold who was asked from which state and
whose updates wait, and `fl_lightning.federation.arrival_journal` holds the updates. So a server that is killed takes
every update that it had received once, and asks for the others again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_lightning import signals
from fl_lightning.aggregation.robust.krum import clients_needed
from fl_lightning.callbacks import FederatedCallback
from fl_lightning.config import FederationConfig
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.arrival_journal import Arrival, ArrivalJournal
from fl_lightning.federation.fit_buffers import FitBuffers, PlannedFit, RoundPlan
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.state import clients_by_department
from fl_lightning.network.coordinator.buffered_clients import BufferedClients, SiteEvent
from fl_lightning.storage.run_layout import ARRIVALS, CHECKPOINTS
from fl_lightning.training.client_tasks import round_tasks

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)

AWAY_SECONDS = 60.0
"""A department waits this long for a site that is not connected before it steps without it."""
RETRY_SECONDS = 10.0
"""A site without a usable reply is asked again after this time, or at once if it has connected anew."""


class SiteRounds(FederatedCallback):
    """The schedule of a run whose clients are sites: each round is one step of the department whose buffer is full.

    As a callback it becomes the trainer's schedule at the start, and its state is in every checkpoint.

    Args:
        clients: the sites.
    """

    def __init__(self, clients: BufferedClients) -> None:
        self._clients = clients
        self._saved: dict[str, Any] = {}
        self._buffers: FitBuffers
        self._journal: ArrivalJournal
        self._trainer: FederatedTrainer
        self._arrivals: dict[str, Arrival] = {}
        """Those that wait in a buffer."""
        self._replay: deque[Arrival] = deque()
        """Those that came after the checkpoint from which the run resumes."""
        self._unsent: dict[str, None] = {}
        self._spent: list[int] = []
        self._num_arrivals = 0
        self._absent_since: dict[str, float] = {}
        self._not_before: dict[str, tuple[float, str]] = {}
        self._heard_at = 0.0

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Become the trainer's schedule; go on from a checkpoint and the updates that came after it."""
        config, members = trainer.federation_config, clients_by_department(trainer.data)
        schedule, folder = config.schedule, trainer.run_folder
        self._trainer = trainer
        self._journal = ArrivalJournal(None if folder is None else folder / CHECKPOINTS / ARRIVALS, trainer.writer)
        self._buffers = FitBuffers(
            members,
            buffer=schedule.buffer,
            concurrency=schedule.concurrency,
            max_staleness=schedule.max_staleness,
            seed=trainer.seed,
            minimum=fewest_updates(config),
        )
        try:
            self._restore()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{folder}: expected a checkpoint of buffered rounds with these sites, got one without their buffers "
                f"({type(error).__name__}: {error}); start a new run"
            ) from error
        trainer.schedule = self

    def next_round(self) -> RoundPlan:
        """Wait until the buffer of a department is full.

        Raises:
            RunError: if no site sends an update for ``network.deadline`` seconds.
        """
        self._journal.remove(self._spent)  # the checkpoint of the round before no longer needs them
        self._spent = []
        self._heard_at = time.monotonic()
        departments: Iterable[str] = self._buffers.departments
        while True:
            away, closed = self._away(), self._closed()
            for department in departments:
                if self._buffers.is_full(department, away):
                    return self._step(department)
                self._unsent.update(dict.fromkeys(self._buffers.ask(department, away=away, closed=closed)))
            departments = self._wait()

    def versions_in_use(self) -> set[tuple[str, int]]:
        """(department, round) of the states from which sites that train, or wait in a buffer, have started."""
        return self._buffers.versions_in_use()

    def state_dict(self) -> dict[str, Any]:
        """Who was asked from which state, whose updates wait and under which number, and the number of the last."""
        if not hasattr(self, "_buffers"):
            return self._saved
        return {
            "buffers": self._buffers.to_dict(),
            "arrivals": {client_id: arrival.number for client_id, arrival in self._arrivals.items()},
            "num_arrivals": self._num_arrivals,
            "kept": dict(self._clients.kept),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self._saved = state

    def _restore(self) -> None:
        saved, numbers = self._saved, self._journal.numbers()
        last = int(saved["num_arrivals"]) if saved else 0
        self._num_arrivals = max([last, *numbers])
        waiting: dict[str, int] = dict(saved["arrivals"]) if saved else {}
        if saved:
            self._buffers.restore(saved["buffers"])
            self._clients.kept.update({client_id: int(number) for client_id, number in saved["kept"].items()})
        for client_id in self._buffers.waiting():
            arrival = self._journal.read(waiting[client_id])
            if arrival is None or arrival.update.client_id != client_id:
                self._buffers.take_back(client_id)
            else:
                self._arrivals[client_id] = arrival
        self._spent = [number for number in numbers if number <= last and number not in waiting.values()]
        later = (self._journal.read(number) for number in numbers if number > last)
        self._replay = deque(arrival for arrival in later if arrival is not None)
        for fits in self._buffers.in_flight.values():
            self._unsent.update(dict.fromkeys(fits))
        state = self._trainer.federation
        stored = {(name, state.round_num) for name in state.departments} | state.past_versions()
        if missing := sorted(self._buffers.versions_in_use() - stored):
            raise ValueError(f"no state of {missing[0][0]} after round {missing[0][1]}")

    def _wait(self) -> Iterable[str]:
        """Take in one event, or wait a little; the departments that may step or ask now."""
        if self._replay:
            arrival = self._replay.popleft()
            if not self._put(arrival):
                self._spent.append(arrival.number)
            return [arrival.update.department]
        self._send()
        signals.check()
        event = self._clients.next_event()
        if event is None:
            self._check_silence()
            return self._buffers.departments
        self._take(event)
        return [event.client_id.split("/", 1)[0]]

    def _take(self, event: SiteEvent) -> None:
        started = self._buffers.started(event.client_id)
        if event.update is None or started is None:
            log.info("%s: no update: %s; it is asked again", event.client_id, event.reason)
            self._buffers.give_up(event.client_id)
            since = self._clients.online().get(event.client_id, "")
            lost = "it disconnected" in event.reason  # it has connected anew, and can be asked at once
            self._not_before[event.client_id] = time.monotonic() + (0.0 if lost else RETRY_SECONDS), since
            return
        self._heard_at = time.monotonic()
        self._num_arrivals += 1
        arrival = Arrival(self._num_arrivals, event.update, started)
        self._journal.record(arrival)
        if not self._put(arrival):
            self._spent.append(arrival.number)

    def _put(self, arrival: Arrival) -> bool:
        """Whether an arrival waits in a buffer from now on; else it is too old, or of a state that is not known."""
        client_id, version = arrival.update.client_id, arrival.started[0]
        known = (arrival.update.department, version) in self._buffers.versions_in_use()
        if client_id in self._arrivals or not (known or version == self._buffers.round_num):
            return False
        self._unsent.pop(client_id, None)
        if not self._buffers.arrive(client_id, arrival.started):
            log.info("%s: its update of round %d came too late and is dropped", client_id, version + 1)
            return False
        self._arrivals[client_id] = arrival
        return True

    def _step(self, department: str) -> RoundPlan:
        plan = self._buffers.step(department)
        for client_id, fit in plan.fits.items():
            arrival = self._arrivals.pop(client_id)
            self._spent.append(arrival.number)
            self._clients.taken[client_id] = arrival.update
            self._clients.kept[client_id] = fit.version + 1
        self._clients.steps = self._buffers.num_steps
        self._clients.is_last = plan.round_num == self._trainer.federation_config.rounds
        return plan

    def _send(self) -> None:
        """Send their tasks to the sites that were asked, and are connected."""
        online = self._clients.online()
        for client_id in [c for c in self._unsent if c in online]:
            del self._unsent[client_id]
            self._clients.begin_fit(self._task(client_id))

    def _task(self, client_id: str) -> ClientTask:
        trainer, start = self._trainer, self._buffers.started(client_id)
        assert start is not None  # it was asked
        round_num = trainer.federation.round_num + 1
        (task,) = round_tasks(
            trainer.federation_config,
            trainer.lora,
            trainer.federation,
            {client_id.split("/", 1)[0]: [client_id]},
            round_num=round_num,
            seed=trainer.seed,
            evaluate=trainer.is_evaluated(start[0] + 1) and any(c.wants_client_metrics for c in trainer.callbacks),
            plan=RoundPlan(round_num, {client_id: PlannedFit(client_id, start[0])}),
        )
        return replace(task, round_num=task.seed_round, started_round=None)

    def _away(self) -> set[str]:
        """Sites for which nobody waits: they are not connected for some time, or train for too long."""
        if self._replay:
            return set()
        online, now = self._clients.online(), time.monotonic()
        self._absent_since = {c: self._absent_since.get(c, now) for c in self._trainer.data if c not in online}
        absent = {c for c, since in self._absent_since.items() if now - since > AWAY_SECONDS}
        return absent | self._clients.overdue()

    def _closed(self) -> set[str]:
        """Sites that cannot be asked at this moment."""
        if self._replay:
            return set()
        online, now = self._clients.online(), time.monotonic()
        paused = {c for c, (at, since) in self._not_before.items() if now < at and online.get(c) == since}
        return {c for c in self._trainer.data if c not in online} | paused

    def _check_silence(self) -> None:
        seconds = self._clients.network.deadline
        if time.monotonic() - self._heard_at > seconds:
            raise RunError(
                f"expected an update of a site within {seconds:.0f} s (network.deadline), got none; connected: "
                f"{', '.join(sorted(self._clients.online())) or 'none'}. See to the sites, then continue with "
                "fl-lightning server --resume last"
            )


def fewest_updates(config: FederationConfig) -> int:
    """Updates that a step needs, also where clients are away: ``min_clients``, and what the guard needs.

    Example:
        >>> fewest_updates(FederationConfig())
        1
    """
    guard = config.guard
    return max(config.min_clients, clients_needed(guard.f) if guard.name in ("krum", "multi_krum") else 1)
