import math

import pytest

from fl_lightning.evaluation.metrics import compute_metrics, mean_metrics, metric_values, perplexity
from fl_lightning.federation.protocol import Metrics


def test_metrics_are_means_over_tokens_and_perplexity_is_the_exponential():
    got = compute_metrics(Metrics(loss_sum=30.0, correct=5.0, num_tokens=20, num_examples=4))
    assert got == pytest.approx({"loss": 1.5, "perplexity": math.exp(1.5), "token_accuracy": 0.25}, rel=1e-6)


def test_perplexity_of_an_enormous_loss_is_finite():
    assert math.isfinite(perplexity(1e9))


def test_mean_over_departments_is_unweighted_and_perplexity_is_that_of_the_mean_loss():
    got = mean_metrics({"hr": metric_values(1.0, 0.5), "sales": metric_values(4.0, 0.0)})
    assert got == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5), "token_accuracy": 0.25}, rel=1e-6)
