import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.personalization.mixture import fit_weights, mixture_losses


def objective(losses, prior, weights):
    """The log-posterior, by its definition."""
    return np.log(np.exp(-losses) @ weights).sum() + (prior[prior > 0] * np.log(weights[prior > 0])).sum()


def draw(seed, tokens=40, models=3):
    return np.random.default_rng(seed).gamma(2.0, 1.0, (tokens, models))


def test_weights_of_two_models_are_the_maximum_of_a_fine_grid():
    losses, prior = draw(0, models=2), np.array([3.0, 1.0])
    grid = np.linspace(1e-4, 1 - 1e-4, 100_001)
    best = max(grid, key=lambda w: objective(losses, prior, np.array([w, 1 - w])))
    assert fit_weights(losses, prior)[0] == pytest.approx(best, abs=2e-5)


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_no_other_weights_have_a_higher_posterior(seed, models):
    losses, prior = draw(seed, models=models), np.random.default_rng(seed + 1).uniform(0, 5, models)
    weights = fit_weights(losses, prior)
    assert weights.sum() == pytest.approx(1.0)
    reached = objective(losses, prior, weights)
    for other in np.random.default_rng(seed + 2).dirichlet(np.ones(models), 50):
        assert objective(losses, prior, 0.9 * weights + 0.1 * other) <= reached + 1e-7


def test_prior_alone_decides_without_tokens_and_hardly_with_many():
    prior = np.array([8.0, 2.0])
    assert fit_weights(np.empty((0, 2)), prior).tolist() == [0.8, 0.2]
    losses = np.tile([5.0, 0.1], (10_000, 1))
    assert fit_weights(losses, prior)[1] > 0.99


def test_model_that_is_certain_and_wrong_once_costs_a_mixture_little():
    losses = np.array([[0.01, 1.0]] * 9 + [[700.0, 1.0]])
    weights = fit_weights(losses, np.zeros(2))
    assert mixture_losses(losses, weights).mean() < losses.mean(axis=0).min()
    assert np.isfinite(mixture_losses(losses, weights)).all()


def test_mixture_is_the_log_of_the_mean_of_probabilities():
    losses, weights = draw(3), np.array([0.5, 0.3, 0.2])
    assert mixture_losses(losses, weights) == pytest.approx(-np.log(np.exp(-losses) @ weights))


@pytest.mark.parametrize(
    ("losses", "prior"),
    [([[1.0, np.nan]], [1, 1]), ([[1.0, np.inf]], [1, 1]), ([[1.0, 2.0]], [-1, 1]), (np.empty((0, 2)), [0, 0])],
)
def test_what_has_no_weights_is_refused(losses, prior):
    with pytest.raises(ValueError, match="expected"):
        fit_weights(np.array(losses), np.array(prior, dtype=float))
