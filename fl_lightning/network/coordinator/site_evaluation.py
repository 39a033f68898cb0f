"""One evaluation by the sites: its jobs in messages, and their answers in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from fl_lightning.federation.protocol import EvaluationJob, Metrics
from fl_lightning.network.validation import RejectedReply, parse_metrics
from fl_lightning.state import LoraState

JOBS_PER_MESSAGE = 16
"""Adapters in one message of an evaluation."""
NO_METRICS = Metrics(0.0, 0.0, 0, 0)
"""The metrics of a site that sent none."""
NO_REPLY = "it did not reply in time"
NOT_ASKED = "it is not connected, or still busy with the round"


class SiteEvaluation:
    """Sends each site its jobs, one message after another, and collects the metrics.

    Args:
        jobs: (adapter, client_id) each.
        free: sites that can be asked.
        send: sends adapters to a site.

    Attributes:
        results: metrics in the order of the jobs; `NO_METRICS` for all jobs of a site that does not answer all of them.
        reasons: {client_id: why there are no metrics of it}.
    """

    def __init__(
        self, jobs: Sequence[EvaluationJob], free: Collection[str], send: Callable[[str, list[LoraState]], object]
    ) -> None:
        self._states, self._send = [state for state, _ in jobs], send
        self.results = [NO_METRICS] * len(jobs)
        self._indices: dict[str, list[int]] = {}
        for index, (_, client_id) in enumerate(jobs):
            self._indices.setdefault(client_id, []).append(index)
        self.reasons = {client_id: NO_REPLY if client_id in free else NOT_ASKED for client_id in self._indices}
        self._chunks: dict[str, list[list[int]]] = {  # unanswered jobs, a message each, in order
            client_id: [indices[i : i + JOBS_PER_MESSAGE] for i in range(0, len(indices), JOBS_PER_MESSAGE)]
            for client_id, indices in self._indices.items()
            if client_id in free
        }
        self._received: dict[str, list[Metrics]] = {client_id: [] for client_id in self._chunks}
        for client_id in self._chunks:
            self._send_next(client_id)

    @property
    def unanswered(self) -> Collection[str]:
        """Sites that owe an answer."""
        return self._chunks.keys()

    def take(self, client_id: str, header: dict[str, Any]) -> None:
        """Take a site's answer, and send it the next jobs. An answer that nobody waits for is ignored.

        Raises:
            RejectedReply: if it cannot be one; the site is not asked again.
        """
        if client_id not in self._chunks:
            return
        chunk = self._chunks[client_id].pop(0)
        try:
            self._received[client_id] += parse_metrics(header, len(chunk))
        except RejectedReply:
            del self._chunks[client_id]
            raise
        if self._chunks[client_id]:
            self._send_next(client_id)
            return
        del self._chunks[client_id], self.reasons[client_id]
        for index, metrics in zip(self._indices[client_id], self._received[client_id], strict=True):
            self.results[index] = metrics

    def lose(self, client_ids: Iterable[str]) -> None:
        """Wait no longer for these sites."""
        for client_id in client_ids:
            self._chunks.pop(client_id, None)

    def _send_next(self, client_id: str) -> None:
        self._send(client_id, [self._states[index] for index in self._chunks[client_id][0]])
