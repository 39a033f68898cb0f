"""Forward and backward pass of a row as a CUDA graph: thousands of small kernels, which a GPU gets in one call.

A graph is recorded once for each size of a row (`fl_lightning.data.row_padding`) and repeated with other numbers in the
same places of memory: the row's tensors, where its clients are, the keys of dropout, and the clients' factors. Nothing
else of a row may be recorded, so its lengths as Python numbers are taken away before. Clipping and AdamW are a few
calls, and stay outside.

What a graph computes is compared with the same pass without a graph when it is recorded.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fl_lightning.data.packing import TENSORS, PackedBatch
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.cohort_row import CohortRow
from fl_lightning.modeling.dropout import Keys
from fl_lightning.modeling.low_rank_product import Segments
from fl_lightning.training.memory import is_out_of_memory
from fl_lightning.training.step_rows import StepRow

log = logging.getLogger(__name__)

MAX_GRAPHS = 16
TOLERANCE = 0.02
"""Relative difference, in the norm of a whole factor's gradient, that is rounding in bf16."""

Work = Callable[[], list[torch.Tensor]]
Recorded = tuple[Callable[[], object], list[torch.Tensor]]
"""(what repeats the work, the tensors in which it leaves its results)."""


@dataclass
class _Graph:
    """Work on inputs that keep their places; `repeat` leaves its results in `outputs`."""

    inputs: list[torch.Tensor]
    repeat: Callable[[], object]
    outputs: list[torch.Tensor]


class StepGraphs:
    """Runs rows of a cohort as graphs.

    Args:
        forward: takes a packed row and returns `ClientSums`.
        cohort: attached, without frozen products.
        autocast: the precision of the forward pass.
        record: makes work repeatable.
    """

    def __init__(
        self,
        forward: Any,
        cohort: LoraCohort,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
        record: Callable[[Work], Recorded] | None = None,
    ) -> None:
        self._forward, self._cohort, self._autocast = forward, cohort, autocast
        self._record = record or record_cuda_graph()
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._factors: dict[tuple[Any, ...], list[torch.Tensor]] = {}
        self._is_off = False

    def add_gradients(self, row: StepRow, num_targets: torch.Tensor) -> torch.Tensor:
        """Add a row's gradients to those of the cohort's parameters.

        Args:
            row: padded; its batch has one client more than the cohort.
            num_targets: of each client in the whole step, shape (K,).

        Returns:
            Each client's loss in the row divided by its number of targets, shape (K,).
        """
        graph = None if self._is_off else self._graph(row, num_targets)
        if graph is None:
            losses, *gradients = self._compute(row.batch, row.places, num_targets)
        else:
            with torch.no_grad():
                torch._foreach_copy_(graph.inputs, self._inputs(row, num_targets))
            graph.repeat()
            losses, *gradients = (result.clone() for result in graph.outputs)  # the next row overwrites them
        for parameter, gradient in zip(self._cohort.parameters(), gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return losses

    def _graph(self, row: StepRow, num_targets: torch.Tensor) -> _Graph | None:
        """The graph for rows of this size; None, from now on, if it cannot be recorded."""
        inputs = self._inputs(row, num_targets)
        key = (row.batch.longest, *((x.shape, x.requires_grad) for x in inputs))
        graph = self._graphs.pop(key, None)
        try:
            graph = graph or self._recorded(inputs, row)
        except Exception as error:  # whatever a kernel may raise that cannot be recorded
            self._graphs.clear()
            self._factors.clear()
            if is_out_of_memory(error):
                raise
            self._is_off = True
            log.warning("training.cuda_graphs: going on without (%s)", " ".join(str(error).split())[:200])
            return None
        self._graphs[key] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def _recorded(self, inputs: Sequence[torch.Tensor], row: StepRow) -> _Graph:
        """A new graph, which sees of a row its sizes and its tensors only.

        Raises:
            RuntimeError: if it computes something else than the same pass without a graph.
        """
        values = self._fixed_factors()
        fixed = [*values, *(x.clone() for x in inputs[len(values) :])]
        remaining = iter(fixed[len(values) :])
        num_targets, ends = next(remaining), next(remaining)
        tensors: dict[str, Any] = {name: next(remaining) for name in TENSORS}
        batch = replace(row.batch, lengths=(), client_tokens=(), **tensors)
        places = CohortRow(Segments((row.batch.num_tokens,), ends), token_keys=next(remaining, None))

        def work() -> list[torch.Tensor]:
            with self._cohort.with_values(values):
                return self._compute(batch, places, num_targets)

        expected = work()
        repeat, outputs = self._record(work)
        repeat()
        pairs = zip(outputs, expected, strict=True)
        differences = [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs]
        if not all(difference <= TOLERANCE for difference in differences):
            raise RuntimeError(f"its results differ by {max(differences):.1%} from those without a graph")
        return _Graph(fixed, repeat, outputs)

    def _fixed_factors(self) -> list[torch.Tensor]:
        """Copies of the cohort's values that all graphs with as many clients share: they are larger than a row."""
        values = self._cohort.values()
        key = tuple((value.shape, value.requires_grad) for value in values)
        if key not in self._factors:
            self._factors[key] = [torch.empty_like(v).requires_grad_(v.requires_grad) for v in values]
        with torch.no_grad():
            torch._foreach_copy_(self._factors[key], values)
        return self._factors[key]

    def _inputs(self, row: StepRow, num_targets: torch.Tensor) -> list[torch.Tensor]:
        """All tensors that differ from row to row."""
        clients, keys = row.places.clients, row.places.token_keys
        assert clients is not None
        batch = [getattr(row.batch, name) for name in TENSORS]
        return [*self._cohort.values(), num_targets, clients.ends, *batch, *(() if keys is None else (_tensor(keys),))]

    def _compute(self, batch: PackedBatch, places: CohortRow, num_targets: torch.Tensor) -> list[torch.Tensor]:
        """The K losses of a row, each divided by its number of targets, and the gradients of their sum."""
        with self._autocast():
            self._cohort.set_row(places)
        losses = self._forward(batch).loss[:-1] / num_targets
        gradients = torch.autograd.grad(losses.sum(), self._cohort.parameters())
        return [losses.detach(), *gradients]


def _tensor(keys: Keys) -> torch.Tensor:
    assert isinstance(keys, torch.Tensor)  # on a GPU
    return keys


def record_cuda_graph() -> Callable[[Work], Recorded]:
    """A function that records CUDA graphs, which share one pool of memory: they never run at the same time."""
    pools: list[Any] = []

    def record(work: Work) -> Recorded:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # libraries reserve memory and choose kernels in their first calls on a stream
        torch.cuda.current_stream().wait_stream(stream)
        pools[:] = pools or [torch.cuda.graph_pool_handle()]
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that makes rows ahead may go on with its copies.
        with torch.cuda.graph(graph, pool=pools[0], capture_error_mode="thread_local"):
            outputs = work()
        return graph.replay, outputs

    return record
