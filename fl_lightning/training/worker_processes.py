"""Several processes of one run: clients spread over them, or all of them on one client.

Every process holds the base model and all records. Under ``parallelism: clients`` the first one hands out whole cohorts
and gets the fitted states back; since cohorts do not depend on who trains them, neither do the results. Under
``parallelism: data`` every process trains every cohort on its share of each micro-batch and the gradients are summed;
with ``strategy: fsdp`` each holds only a share of the base, too, for a model that outgrows a device.
The first process alone runs the trainer and writes; the others do what it asks, until it says stop.
"""

from __future__ import annotations

import atexit
import collections
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fl_lightning import signals
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import (
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    header_of,
    update_from,
)
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import decode, encode

if TYPE_CHECKING:
    from fl_lightning.training.local_clients import LocalClients

Parallelism = Literal["clients", "data"]
Item = TypeVar("Item")


def on_own_device(fabric: Fabric) -> Fabric:
    """A Fabric for this process's device alone, with the precision of `fabric`; `fabric` itself where it is alone.

    The processes exchange finished states and not gradients, so nothing is to be wrapped for gradient synchronisation.
    """
    if fabric.world_size == 1:
        return fabric
    own = Fabric(
        accelerator=fabric.accelerator,
        strategy=SingleDeviceStrategy(device=fabric.device, precision=fabric.strategy.precision),
    )
    own.launch()
    return own


class Channel:
    """Messages between the first process and the others: a gloo group of its own, on the CPU whatever the device."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=365))  # rounds may take their time

    def send(self, to: int, header: Mapping[str, Any], states: Sequence[Mapping[str, torch.Tensor]] = ()) -> None:
        """Send a message to a rank.

        Raises:
            RunError: if it has gone.
        """
        message = torch.frombuffer(bytearray(encode(header, states)), dtype=torch.uint8)
        try:
            dist.send(torch.tensor([len(message)]), to, group=self._group)
            dist.send(message, to, group=self._group)
        except RuntimeError as error:
            raise _lost(to, error) from error

    def receive(self, source: int) -> tuple[Any, list[LoraState]]:
        """The next message of a rank; waits for it.

        Raises:
            RunError: if it has gone.
        """
        size = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(size, source, group=self._group)
            message = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(message, source, group=self._group)
        except RuntimeError as error:
            raise _lost(source, error) from error
        return decode(message.numpy().tobytes())


def _lost(rank: int, error: RuntimeError) -> RunError:
    return RunError(f"process {rank} of the run is lost ({' '.join(str(error).split())[:160]})")


@dataclass(frozen=True)
class Shard:
    """This process's share of every micro-batch, and of the base model where that is cut up too.

    Attributes:
        fabric: joins the processes.
        base_too: whether each process holds a part of every frozen weight, which it gathers layer by layer.
    """

    fabric: Fabric
    base_too: bool = False

    def cut_base(self, model: Any) -> None:
        """Leave this process a part of the base's weights (FSDP, Zhao et al. 2023, arXiv 2304.11277); adapters stay."""
        mesh = init_device_mesh(self.fabric.device.type, (self.fabric.world_size,))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        adapters = {parameter for parameter in model.parameters() if parameter.requires_grad}
        blocks = set(getattr(base, "_no_split_modules", None) or ())
        for module in [m for m in base.modules() if type(m).__name__ in blocks]:
            fully_shard(module, mesh=mesh, ignored_params=adapters)
        fully_shard(base, mesh=mesh, ignored_params=adapters)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.fabric.global_rank

    def part(self, clients: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """Every world_size-th example of each client, from `rank` on."""
        return [list(batch[self.rank :: self.fabric.world_size]) for batch in clients]

    def sum(self, losses: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """Sum the gradients over the processes, in place, and the losses, which come back."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([losses.flatten().to(gradients[0].dtype), *(g.flatten() for g in gradients)])
        summed = self.fabric.all_reduce(flat, reduce_op="sum")
        parts = torch.split(summed, [losses.numel(), *(g.numel() for g in gradients)])  # type: ignore[arg-type]
        for parameter, part in zip(parameters, parts[1:], strict=True):
            parameter.grad = part.view_as(parameter)
        return parts[0].view_as(losses)


def spread(weights: Sequence[float], ranks: int) -> list[int]:
    """The rank of each item: the heaviest first, each to the rank with the least so far.

    Example:
        >>> spread([1.0, 5.0, 3.0, 2.0], 2)
        [0, 0, 1, 1]
    """
    loads, owners = [0.0] * ranks, [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        owners[index] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owners[index]] += weights[index]
    return owners


class SeveralProcesses:
    """The clients of a federation, on all processes of the run.

    Args:
        fabric: launched, with a world size above 1.
        local: the clients on this process's device.
        parallelism: what the processes share: the clients, or each micro-batch.
    """

    def __init__(self, fabric: Fabric, local: LocalClients, parallelism: Parallelism = "clients") -> None:
        self.local, self.parallelism = local, parallelism
        self._rank, self._others = fabric.global_rank, range(1, fabric.world_size)
        self._channel = Channel()
        self._inbox: queue.Queue[tuple[int, Any, list[LoraState]]] = queue.Queue()
        if self._rank == 0:
            ears = [threading.Thread(target=self._listen, args=(rank,), daemon=True) for rank in self._others]
            for ear in ears:
                ear.start()
                # A thread that waits inside gloo while the interpreter shuts down would abort the process.
                atexit.register(ear.join, timeout=5.0)

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Fit the clients of the tasks, but for cohorts in the journal.

        Updates come in the order of the tasks, each as soon as it can; the journal gets them as they arrive.
        """
        waiting = collections.deque(self.local.cohorts(tasks))
        fresh = [cohort for cohort in waiting if journal is None or journal.replay(cohort) is None]
        missing = {cohort[0].client_id for cohort in fresh}
        mine, theirs = fresh, dict.fromkeys(self._others, fresh)
        if self.parallelism == "clients":
            owners = spread([self._tokens(cohort) for cohort in fresh], 1 + len(self._others))
            mine, *rest = (
                [cohort for cohort, owner in zip(fresh, owners, strict=True) if owner == rank]
                for rank in (0, *self._others)
            )
            theirs = dict(zip(self._others, rest, strict=True))
        for rank, cohorts in theirs.items():
            self._ask(rank, cohorts)
        arrived: dict[str, list[ClientUpdate]] = {}

        def keep(updates: list[ClientUpdate]) -> None:
            arrived[updates[0].client_id] = updates
            if journal is not None:
                journal.record(updates)

        def ready() -> Iterator[ClientUpdate]:
            while waiting:
                first = waiting[0][0].client_id
                if first in missing and first not in arrived:
                    return
                cohort = waiting.popleft()
                replayed = None if first in missing or journal is None else journal.replay(cohort)
                yield from arrived.pop(first) if replayed is None else replayed

        for cohort in mine:
            keep(self.local.fit_clients(cohort, on_step))
            while not self._inbox.empty():
                keep(self._take(on_step))
            yield from ready()
        while waiting:
            yield from ready()
            if waiting:
                keep(self._take(on_step))

    def evaluate(self, jobs: Iterable[EvaluationJob]) -> list[Metrics]:
        """Each adapter on the client's held-out records, in the order of the jobs."""
        listed = list(jobs)
        if self.local.in_step:
            for rank in self._others:
                clients = [client_id for _, client_id in listed]
                self._channel.send(rank, {"do": "evaluate", "clients": clients}, [state for state, _ in listed])
            return self.local.evaluate(listed)
        tokens = [float(sum(map(len, self.local.data[client_id].eval))) for _, client_id in listed]
        owners = spread(tokens, 1 + len(self._others))
        mine = {rank: [i for i, owner in enumerate(owners) if owner == rank] for rank in (0, *self._others)}
        for rank in self._others:
            states = [listed[i][0] for i in mine[rank]]
            self._channel.send(rank, {"do": "evaluate", "clients": [listed[i][1] for i in mine[rank]]}, states)
        results = dict(zip(mine[0], self.local.evaluate([listed[i] for i in mine[0]]), strict=True))
        for _ in self._others:
            rank, header, _ = self._receive()
            results.update(zip(mine[rank], (Metrics(**values) for values in header["metrics"]), strict=True))
        return [results[i] for i in range(len(listed))]

    def serve(self) -> list[LoraState]:
        """On the other processes: do what the first one asks.

        Returns:
            The states that it sends at the end.

        Raises:
            RunError: if it has gone.
        """
        while True:
            header, states = self._channel.receive(0)
            if header["do"] == "stop":
                self._channel.send(0, {"done": True})
                return states
            try:
                self._obey(header, states)
            except Exception as error:
                self._channel.send(0, {"error": f"process {self._rank}: {type(error).__name__}: {error}"})
                raise

    def stop(self, states: Sequence[LoraState] = ()) -> None:
        """On the first process: let the others go, with these states as their result."""
        for rank in self._others:
            self._channel.send(rank, {"do": "stop"}, states)

    def _obey(self, header: Any, states: list[LoraState]) -> None:
        if header["do"] == "evaluate":
            metrics = self.local.evaluate(zip(states, header["clients"], strict=True))
            if not self.local.in_step:
                self._channel.send(0, {"metrics": [vars(m) for m in metrics]})
            return
        given = iter(states)
        for cohort in header["cohorts"]:
            tasks = [ClientTask(**task, start=next(given), frozen_product=next(given)) for task in cohort]
            updates = self.local.fit_clients(tasks)
            if self.parallelism == "clients":
                self._channel.send(0, {"updates": [header_of(u) for u in updates]}, [u.state for u in updates])

    def _ask(self, rank: int, cohorts: Sequence[Sequence[ClientTask]]) -> None:
        headers = [[header_of(task) for task in cohort] for cohort in cohorts]
        states = [state for cohort in cohorts for task in cohort for state in (task.start, task.frozen_product)]
        self._channel.send(rank, {"do": "fit", "cohorts": headers}, states)

    def _take(self, on_step: OnStep | None) -> list[ClientUpdate]:
        """The next cohort's updates that another process sends."""
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
        """Take in what a process sends, so that it never waits for this one."""
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

    def _tokens(self, cohort: Sequence[ClientTask]) -> float:
        return float(sum(len(e) for task in cohort for e in self.local.data[task.client_id].train))
