import itertools
import math
import random
import statistics

import pytest

from fl_lightning.evaluation.metrics import (
    ClientSample,
    compute_metrics,
    estimate_metrics,
    mean_metrics,
    metric_values,
    perplexity,
)
from fl_lightning.federation.protocol import Metrics


def test_metrics_are_means_over_tokens_and_perplexity_is_the_exponential():
    got = compute_metrics(Metrics(loss_sum=30.0, correct=5.0, num_tokens=20, num_examples=4))
    assert got == pytest.approx({"loss": 1.5, "perplexity": math.exp(1.5), "token_accuracy": 0.25}, rel=1e-6)


def test_perplexity_of_an_enormous_loss_is_finite():
    assert math.isfinite(perplexity(1e9))


def test_mean_over_departments_is_unweighted_and_perplexity_is_that_of_the_mean_loss():
    got = mean_metrics({"hr": metric_values(1.0, 0.5), "sales": metric_values(4.0, 0.0)})
    assert got == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5), "token_accuracy": 0.25}, rel=1e-6)


def test_standard_error_of_the_mean_is_that_of_independent_departments():
    got = mean_metrics(
        {d: {**metric_values(1.0, 0.5), "loss_stderr": error} for d, error in (("hr", 0.3), ("it", 0.4))}
    )
    assert got["loss_stderr"] == pytest.approx(0.5 / 2)


def _clients(count):
    generator = random.Random(3)
    sizes = [generator.randint(2, 9) for _ in range(count)]
    return [Metrics(size * generator.uniform(1, 5), size * generator.random(), size, 1) for size in sizes]


def test_a_sample_of_all_clients_gives_their_pooled_metrics_without_error():
    clients = _clients(6)
    got = estimate_metrics([ClientSample(clients, 6)])
    assert got.pop("loss_stderr") == 0.0
    assert got == pytest.approx(compute_metrics(sum(clients[1:], clients[0])), rel=1e-6)


def test_standard_error_is_the_spread_over_all_possible_samples():
    # Reference: every sample of 5 among 11 clients, and for two departments some pairs of them.
    first, second = _clients(12), _clients(20)[12:]
    estimates = [estimate_metrics([ClientSample(s, 11)]) for s in itertools.combinations(first[:11], 5)]
    spread = statistics.pstdev(values["loss"] for values in estimates)
    rms = statistics.fmean(values["loss_stderr"] ** 2 for values in estimates) ** 0.5
    assert rms == pytest.approx(spread, rel=0.15)
    everything = sum(first[1:], first[0]) + sum(second[1:], second[0])
    pairs = itertools.product(itertools.combinations(first, 4), itertools.combinations(second, 3))
    some = random.Random(1).sample(list(pairs), 300)
    estimates = [estimate_metrics([ClientSample(a, 12), ClientSample(b, 8)]) for a, b in some]
    assert statistics.fmean(v["loss"] for v in estimates) == pytest.approx(
        compute_metrics(everything)["loss"], rel=0.02
    )
    rms = statistics.fmean(values["loss_stderr"] ** 2 for values in estimates) ** 0.5
    assert rms == pytest.approx(statistics.pstdev(values["loss"] for values in estimates), rel=0.15)


def test_one_client_of_several_gives_no_standard_error():
    assert "loss_stderr" not in estimate_metrics([ClientSample(_clients(1), 5)])
