"""Loss, perplexity and token accuracy of one adapter, and their mean over several."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchmetrics import MeanMetric

from fl_lightning.federation.protocol import Metrics

MAX_LOSS = 700.0
"""Nats per token; exp of more does not fit into a float."""

MetricValues = dict[str, float]
"""{"loss": nats per token, "perplexity": exp(loss), "token_accuracy": share of tokens predicted correctly}."""


def perplexity(loss: float) -> float:
    """exp(loss), with the loss capped at `MAX_LOSS` so that the result is finite.

    Example:
        >>> perplexity(0.0), math.isfinite(perplexity(1e9))
        (1.0, True)
    """
    return math.exp(min(loss, MAX_LOSS))


def metric_values(loss: float, token_accuracy: float) -> MetricValues:
    """The three metrics.

    Args:
        loss: in nats per token.
        token_accuracy: in [0, 1].
    """
    return {"loss": loss, "perplexity": perplexity(loss), "token_accuracy": token_accuracy}


def compute_metrics(sums: Metrics) -> MetricValues:
    """The metrics of one adapter on one set of records, from sums over their tokens."""
    loss, accuracy = _local_mean(), _local_mean()
    loss.update(sums.loss_sum / sums.num_tokens, weight=sums.num_tokens)
    accuracy.update(sums.correct / sums.num_tokens, weight=sums.num_tokens)
    return metric_values(float(loss.compute()), float(accuracy.compute()))


def mean_metrics(values_by_name: Mapping[str, MetricValues]) -> MetricValues:
    """Unweighted mean of loss and accuracy over departments (or clients); the perplexity is that of the mean loss."""
    loss, accuracy = _local_mean(), _local_mean()
    for values in values_by_name.values():
        loss.update(values["loss"])
        accuracy.update(values["token_accuracy"])
    return metric_values(float(loss.compute()), float(accuracy.compute()))


def _local_mean() -> MeanMetric:
    """A mean on this process alone: only the first process computes it, so a synchronization would never end."""
    return MeanMetric(sync_on_compute=False)
