"""Metrics of the server, in Prometheus's format at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServingMetrics:
    """Counters of a server; their names begin with ``fl_``. Only models that are served appear as labels."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = Counter("fl_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.in_flight = Gauge("fl_requests_in_flight", "Chat requests under way.", registry=self.registry)
        self.prompt_tokens = Counter("fl_prompt_tokens", "Tokens read.", ["model"], registry=self.registry)
        self.new_tokens = Counter("fl_generated_tokens", "Tokens produced.", ["model"], registry=self.registry)
        self.seconds = Histogram(
            "fl_chat_seconds", "Seconds to the end of an answer.", ["model"], registry=self.registry, buckets=SECONDS
        )
        self.first = Histogram(
            "fl_first_token_seconds",
            "Seconds to the first token of a streamed answer.",
            ["model"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.loads = Counter("fl_adapter_loads", "Adapters that were read again.", registry=self.registry)
        self.abandoned = Counter("fl_abandoned", "Answers whose client disconnected.", registry=self.registry)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
