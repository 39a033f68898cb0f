import numpy as np
import pytest

from fl_lightning.personalization.choice import OWN_TOKENS, choose_levels
from fl_lightning.personalization.mixture import fit_weights

NOTHING = np.empty((0, 2))


def tokens(count, *losses):
    return np.tile(np.array(losses, dtype=float), (count, 1))


def test_client_with_many_tokens_decides_by_itself():
    choices = choose_levels({"a": tokens(2000, 1, 3), "b": tokens(2000, 3, 1)}, 20.0)
    assert (choices["a"].level, choices["b"].level) == (0, 1)
    assert choices["a"].weights[0] > 0.98
    assert choices["b"].weights[1] > 0.98


def test_client_with_few_tokens_leans_on_its_department():
    department = {name: tokens(200, 3, 1) for name in "bcd"}
    few = tokens(4, 1, 1.5)
    assert choose_levels({"a": few, **department}, 20.0)["a"].level == 1
    assert choose_levels({"a": few, **department}, 20.0)["a"].weights[1] > 0.8
    assert choose_levels({"a": few, **department}, 0.0)["a"].level == 0


def test_prior_is_the_weights_of_the_department_by_its_definition():
    both = {"a": tokens(5, 1, 2), "b": tokens(9, 2, 1)}
    together = fit_weights(np.concatenate(list(both.values())), np.array([OWN_TOKENS, 0.0]))
    expected = fit_weights(both["a"], 20.0 * together)
    assert choose_levels(both, 20.0)["a"].weights.tolist() == expected.tolist()


@pytest.mark.parametrize("prior", [0.0, 20.0])
def test_client_without_records_takes_what_its_department_takes(prior):
    choices = choose_levels({"a": NOTHING, "b": tokens(40, 3, 1)}, prior)
    assert choices["a"].level == 1
    assert choices["a"].weights.tolist() == pytest.approx(fit_weights(tokens(40, 3, 1), np.array([OWN_TOKENS, 0.0])))


def test_levels_that_are_alike_leave_a_client_with_its_own():
    choice = choose_levels({"a": tokens(10, 2, 2)}, 20.0)["a"]
    assert choice.level == 0
    assert choice.weights[0] >= choice.weights[1]


def test_department_without_selection_records_is_refused():
    with pytest.raises(ValueError, match="expected a selection record of one client at least, got none"):
        choose_levels({"a": NOTHING, "b": NOTHING}, 10.0)


def em(losses, prior, steps=3000):
    """Weights of the highest posterior by textbook EM: responsibilities, then shares of their sums."""
    weights = np.full(losses.shape[1], 1 / losses.shape[1])
    for _ in range(steps):
        joint = weights * np.exp(-losses)
        counts = (joint / joint.sum(1, keepdims=True)).sum(0) + prior
        weights = counts / counts.sum()
    return weights


def test_department_chooses_mates_as_a_whole_and_the_client_between_them():
    """a has two mates and b has one: their columns are not the same adapters, and only their sum is comparable."""
    draw = np.random.default_rng(0)
    losses = {"a": draw.uniform(1, 4, (30, 4)), "b": draw.uniform(1, 4, (20, 3))}
    levels = {"a": ["own", "base", "mates", "mates"], "b": ["own", "base", "mates"]}
    of_mates = -np.log(np.exp(-losses["a"][:, 2:]).mean(1, keepdims=True))
    together = np.concatenate([np.hstack([losses["a"][:, :2], of_mates]), losses["b"]])
    department = 20 * em(together, np.array([OWN_TOKENS, 0, 0]))
    choices = choose_levels(losses, 20.0, levels=levels)
    expected = em(losses["a"], np.array([department[0], department[1], department[2] / 2, department[2] / 2]))
    assert choices["a"].weights.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert choices["b"].weights.tolist() == pytest.approx(em(losses["b"], department).tolist(), abs=1e-6)


def test_client_without_records_divides_the_weight_of_mates_evenly():
    losses = {"a": np.empty((0, 3)), "b": tokens(40, 3, 1, 2)}
    levels = dict.fromkeys("ab", ["own", "mates", "mates"])
    weights = choose_levels(losses, 20.0, levels=levels)["a"].weights
    assert weights[1] == weights[2] > weights[0]


def test_levels_of_one_adapter_are_chosen_as_without_names():
    losses = {name: np.random.default_rng(i).uniform(1, 4, (30, 3)) for i, name in enumerate("ab")}
    named = choose_levels(losses, 20.0, levels=dict.fromkeys("ab", ["own", "root", "base"]))
    for client, choice in choose_levels(losses, 20.0).items():
        assert (choice.level, choice.weights.tolist()) == (named[client].level, named[client].weights.tolist())
