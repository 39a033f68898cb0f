"""Loss, perplexity and token accuracy of one adapter, and their mean over several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torchmetrics import MeanMetric

from fl_lightning.federation.protocol import Metrics

MAX_LOSS = 700.0
"""Nats per token; exp of more does not fit into a float."""

MetricValues = dict[str, float]
"""{"loss": nats per token, "perplexity": exp(loss), "token_accuracy": share of tokens predicted correctly}; with
"loss_stderr", the loss's standard error, if it is of a sample of clients."""


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
    return metric_values(sums.loss_sum / sums.num_tokens, sums.correct / sums.num_tokens)


def mean_metrics(values_by_name: Mapping[str, MetricValues]) -> MetricValues:
    """Unweighted mean of loss and accuracy over departments (or clients); the perplexity is that of the mean loss.

    It has a standard error if all departments have one.
    """
    # On this process alone: only the first process computes means, so a synchronization would never end.
    loss, accuracy = (MeanMetric(sync_on_compute=False).set_dtype(torch.float64) for _ in range(2))
    loss.update(torch.tensor([values["loss"] for values in values_by_name.values()], dtype=torch.float64))
    accuracy.update(torch.tensor([values["token_accuracy"] for values in values_by_name.values()], dtype=torch.float64))
    mean = metric_values(float(loss.compute()), float(accuracy.compute()))
    if all("loss_stderr" in values for values in values_by_name.values()):
        mean["loss_stderr"] = math.hypot(*(v["loss_stderr"] for v in values_by_name.values())) / len(values_by_name)
    return mean


@dataclass(frozen=True)
class ClientSample:
    """Results of clients that were drawn from a department, without replacement and each as likely.

    Attributes:
        results: one for each drawn client that has any.
        population: number of the department's clients.
    """

    results: Sequence[Metrics]
    population: int


def estimate_metrics(samples: Sequence[ClientSample]) -> MetricValues:
    """The metrics over all tokens of all clients of some departments, estimated from samples of their clients.

    Loss and accuracy are ratios of estimated totals, and the loss has the standard error of such a ratio under
    stratified sampling: Cochran 1977, Sampling Techniques, chapter 6, with the correction for finite populations.

    Args:
        samples: one for each department, each with a result.

    Returns:
        With ``loss_stderr``, unless a department has a single result of several clients.

    Example:
        >>> sample = ClientSample([Metrics(10.0, 2, 5, 1), Metrics(20.0, 3, 5, 1)], population=4)
        >>> values = estimate_metrics([sample])
        >>> values["loss"], values["token_accuracy"], values["loss_stderr"]  # sqrt((1 - 2 / 4) 2 (5² + 5²)) / 10
        (3.0, 0.5, 0.7071067811865476)
    """
    factors = [sample.population / len(sample.results) for sample in samples]
    sums = [sum(sample.results[1:], sample.results[0]) for sample in samples]
    tokens = sum(f * s.num_tokens for f, s in zip(factors, sums, strict=True))
    loss = sum(f * s.loss_sum for f, s in zip(factors, sums, strict=True)) / tokens
    accuracy = sum(f * s.correct for f, s in zip(factors, sums, strict=True)) / tokens
    variance = 0.0
    for sample, factor in zip(samples, factors, strict=True):
        n = len(sample.results)
        if n == sample.population:
            continue
        if n == 1:
            return metric_values(loss, accuracy)
        residuals = [result.loss_sum - loss * result.num_tokens for result in sample.results]
        variance += factor**2 * n * (1 - n / sample.population) * statistics.variance(residuals)
    return {**metric_values(loss, accuracy), "loss_stderr": math.sqrt(variance) / tokens}
