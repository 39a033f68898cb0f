"""Several processes of one run, each with the base model and all records.

Under ``parallelism: clients`` the first process hands out whole cohorts and gets the fitted states back. The result of
a cohort does not depend on the process that trains it. Under ``parallelism: data`` every process trains every cohort on
its share of each micro-batch, and the gradients are summed; with ``strategy: fsdp`` each process also holds only a
share of the base model, for a model that does not fit on one device.

Only the first process runs the trainer and writes files. The others handle its requests until it sends ``stop``.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.fabric import Fabric
from lightning.fabric.strategies.single_device import SingleDeviceStrategy

from fl_lightning import signals
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import (
    TASK_STATES,
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    Split,
    header_of,
    update_from,
)
from fl_lightning.state import LoraState
from fl_lightning.training.channel import Channel
from fl_lightning.training.local_clients import LocalClients

Parallelism = Literal["clients", "data"]


def pin_device(fabric: Fabric) -> Fabric:
    """A Fabric for this process's device only, with the precision of `fabric`; `fabric` itself for a single process.

    The processes exchange fitted states, so modules must not be wrapped for gradient synchronization.
    """
    if fabric.world_size == 1:
        return fabric
    single_device = Fabric(
        accelerator=fabric.accelerator,
        strategy=SingleDeviceStrategy(device=fabric.device, precision=fabric.strategy.precision),
    )
    single_device.launch()
    return single_device


def balance_load(weights: Sequence[float], ranks: int) -> list[int]:
    """The rank of each item: heaviest items first, each to the rank with the smallest load so far.

    Example:
        >>> balance_load([1.0, 5.0, 3.0, 2.0], 2)
        [0, 0, 1, 1]
    """
    loads, owners = [0.0] * ranks, [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        owners[index] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owners[index]] += weights[index]
    return owners


class WorkerProcesses:
    """The clients of a federation, on all processes of the run.

    Args:
        fabric: launched, with a world size above 1.
        local: the clients on this process's device.
        parallelism: what the processes share: the clients, or each micro-batch.
    """

    def __init__(self, fabric: Fabric, local: LocalClients, parallelism: Parallelism = "clients") -> None:
        self.local, self.parallelism = local, parallelism
        self._rank, self._other_ranks = fabric.global_rank, range(1, fabric.world_size)
        self._channel = Channel()
        self._inbox: queue.Queue[tuple[int, Any, list[LoraState]]] = queue.Queue()
        if self._rank == 0:
            receivers = [threading.Thread(target=self._listen, args=(rank,), daemon=True) for rank in self._other_ranks]
            for receiver in receivers:
                receiver.start()
                # A thread that waits inside gloo while the interpreter shuts down would abort the process.
                atexit.register(receiver.join, timeout=5.0)

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Fit the clients of the tasks, except cohorts that are in the journal.

        Updates keep the order of the tasks, each as early as possible; the journal gets them as they arrive.
        """
        waiting = collections.deque(self.local.cohorts(tasks))
        unfitted = [cohort for cohort in waiting if journal is None or journal.replay(cohort) is None]
        unfitted_keys = {_key(cohort[0]) for cohort in unfitted}
        by_rank = self._assign(unfitted)
        for rank in self._other_ranks:
            self._send_fit(rank, by_rank[rank])
        arrived: dict[tuple[str, bool], list[ClientUpdate]] = {}

        def keep(updates: list[ClientUpdate]) -> None:
            arrived[_key(updates[0])] = updates
            if journal is not None:
                journal.record(updates)

        def ready() -> Iterator[ClientUpdate]:
            while waiting:
                first = _key(waiting[0][0])
                if first in unfitted_keys and first not in arrived:
                    return
                cohort = waiting.popleft()
                replayed = None if first in unfitted_keys or journal is None else journal.replay(cohort)
                yield from arrived.pop(first) if replayed is None else replayed

        for cohort in by_rank[0]:
            keep(self.local.fit_cohort(cohort, on_step))
            while not self._inbox.empty():
                keep(self._receive_update(on_step))
            yield from ready()
        while waiting:
            yield from ready()
            if waiting:
                keep(self._receive_update(on_step))

    def _assign(self, cohorts: list[list[ClientTask]]) -> dict[int, list[list[ClientTask]]]:
        """The cohorts that each rank trains."""
        ranks = (0, *self._other_ranks)
        if self.parallelism == "data":
            return dict.fromkeys(ranks, cohorts)
        owners = balance_load([self._num_tokens(cohort) for cohort in cohorts], len(ranks))
        return {rank: [c for c, owner in zip(cohorts, owners, strict=True) if owner == rank] for rank in ranks}

    def evaluate(self, jobs: Iterable[EvaluationJob], split: Split = "eval") -> list[Metrics]:
        """Metrics of each adapter on its client's held-out or selection records, in the order of the jobs."""
        all_jobs = list(jobs)
        if self.local.shards_base_model:
            for rank in self._other_ranks:
                self._send_evaluate(rank, all_jobs, split)
            return self.local.evaluate(all_jobs, split)
        tokens = [float(sum(map(len, getattr(self.local.data[client_id], split)))) for _, client_id in all_jobs]
        owners = balance_load(tokens, 1 + len(self._other_ranks))
        by_rank = {rank: [i for i, owner in enumerate(owners) if owner == rank] for rank in (0, *self._other_ranks)}
        for rank in self._other_ranks:
            self._send_evaluate(rank, [all_jobs[i] for i in by_rank[rank]], split)
        results = dict(zip(by_rank[0], self.local.evaluate([all_jobs[i] for i in by_rank[0]], split), strict=True))
        for _ in self._other_ranks:
            rank, header, _ = self._receive()
            results.update(zip(by_rank[rank], (Metrics(**values) for values in header["metrics"]), strict=True))
        return [results[i] for i in range(len(all_jobs))]

    def target_losses_of(
        self, states: Sequence[LoraState], client_ids: Sequence[str], split: Split
    ) -> npt.NDArray[np.float64]:
        """Losses of clients' target tokens, on the first process; the others help where they share the base model."""
        if self.local.shards_base_model:
            for rank in self._other_ranks:
                header = {"do": "target_losses", "clients": list(client_ids), "split": split}
                self._channel.send(rank, header, list(states))
        return self.local.target_losses_of(states, client_ids, split)

    def serve(self) -> list[LoraState]:
        """On the other processes: handle the first one's requests until it stops.

        Returns:
            The states that it sends at the end.

        Raises:
            RunError: if the first process is gone.
        """
        while True:
            header, states = self._channel.receive(0)
            if header["do"] == "stop":
                with contextlib.suppress(RunError):  # it may have ended already, and needs no answer then
                    self._channel.send(0, {"done": True})
                return states
            try:
                self._handle_request(header, states)
            except Exception as error:
                self._channel.send(0, {"error": f"process {self._rank}: {type(error).__name__}: {error}"})
                raise

    def stop(self, states: Sequence[LoraState] = ()) -> None:
        """On the first process: end `serve` on the others, with these states as its result."""
        for rank in self._other_ranks:
            self._channel.send(rank, {"do": "stop"}, states)

    def _handle_request(self, header: Mapping[str, Any], states: list[LoraState]) -> None:
        if header["do"] == "evaluate":
            metrics = self.local.evaluate(zip(states, header["clients"], strict=True), header["split"])
            if not self.local.shards_base_model:
                self._channel.send(0, {"metrics": [vars(m) for m in metrics]})
            return
        if header["do"] == "target_losses":
            self.local.target_losses_of(states, header["clients"], header["split"])
            return
        remaining = iter(states)
        for cohort in header["cohorts"]:
            values: list[dict[str, Any]] = [{**t, **{name: next(remaining) for name in TASK_STATES}} for t in cohort]
            tasks = [ClientTask(**task) for task in values]
            updates = self.local.fit_cohort(tasks)
            if self.parallelism == "clients":
                self._channel.send(0, {"updates": [header_of(u) for u in updates]}, [u.state for u in updates])

    def _send_fit(self, rank: int, cohorts: Sequence[Sequence[ClientTask]]) -> None:
        headers = [[header_of(task) for task in cohort] for cohort in cohorts]
        states = [getattr(task, name) for cohort in cohorts for task in cohort for name in TASK_STATES]
        self._channel.send(rank, {"do": "fit", "cohorts": headers}, states)

    def _send_evaluate(self, rank: int, jobs: Sequence[EvaluationJob], split: Split) -> None:
        header = {"do": "evaluate", "clients": [client_id for _, client_id in jobs], "split": split}
        self._channel.send(rank, header, [state for state, _ in jobs])

    def _receive_update(self, on_step: OnStep | None) -> list[ClientUpdate]:
        """The next updates of a cohort from another process."""
        _, header, states = self._receive()
        updates = [update_from(values, state) for values, state in zip(header["updates"], states, strict=True)]
        if on_step is not None:
            on_step([u.client_id for u in updates], 1.0, sum(u.num_tokens for u in updates))
        return updates

    def _receive(self) -> tuple[int, Any, list[LoraState]]:
        while True:
            signals.check()
            try:
                rank, header, states = self._inbox.get(timeout=0.2)
            except queue.Empty:
                continue
            if "error" in header:
                signals.check()
                raise RunError(header["error"])
            return rank, header, states

    def _listen(self, rank: int) -> None:
        """Queue the messages of a process, so that it never waits for this one."""
        while True:
            try:
                header, states = self._channel.receive(rank)
            except Exception as error:
                header, states = {"error": str(error)}, []
            if "done" in header:
                return
            self._inbox.put((rank, header, states))
            if "error" in header:
                return

    def _num_tokens(self, cohort: Sequence[ClientTask]) -> float:
        return float(sum(len(e) for task in cohort for e in self.local.data[task.client_id].train))


def _key(item: ClientTask | ClientUpdate) -> tuple[str, bool]:
    return item.client_id, item.is_own
