import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.weighting import WEIGHTINGS, ClientStats, make_weighting
from fl_lightning.errors import InputError

LOSSES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=9)
FACTS = st.builds(ClientStats, st.integers(1, 2**53), st.integers(0, 2**53), LOSSES)
CLIENTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), FACTS, min_size=1, max_size=5)
MEASURED = st.floats(allow_nan=True, allow_infinity=True)


def made(name, clients, losses=(), loss_with=0.0):
    if name != "contribution":
        return make_weighting(name)
    return make_weighting(name, loss_without=dict(zip(clients, losses, strict=False)), loss_with=loss_with)


@pytest.mark.parametrize("name", WEIGHTINGS)
@settings(max_examples=60, deadline=None)
@given(clients=CLIENTS, losses=st.lists(MEASURED, min_size=5, max_size=5), loss_with=MEASURED)
def test_weights_are_finite_not_negative_and_somebody_has_one(name, clients, losses, loss_with):
    weights = made(name, clients, losses, loss_with)(clients)
    assert list(weights) == list(clients)
    assert all(type(w) is float and 0 <= w < math.inf for w in weights.values())
    assert 0 < sum(weights.values()) < math.inf


@pytest.mark.parametrize("name", WEIGHTINGS)
@settings(max_examples=30, deadline=None)
@given(clients=CLIENTS, losses=st.lists(MEASURED, min_size=5, max_size=5))
def test_the_order_of_the_clients_makes_no_difference(name, clients, losses):
    rule = made(name, clients, losses)
    assert rule(dict(reversed(clients.items()))) == rule(clients)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_no_clients_are_refused(name):
    with pytest.raises(ValueError, match="no clients to weigh: got none, wanted at least one"):
        made(name, {})({})


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="weighting: got 'token', wanted one of examples, .*; did you mean 'tokens'?"):
        make_weighting("token")
