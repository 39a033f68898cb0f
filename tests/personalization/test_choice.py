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
