import dataclasses
import math

import pytest

from fl_lightning.aggregation.weighting import ClientStats


def test_facts_are_frozen():
    facts = ClientStats(num_examples=1, num_tokens=2, losses=[1.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.num_examples = 5


@pytest.mark.parametrize("bad", [0, -1, 2**53 + 1, 1.0, True, "7", None])
def test_a_count_of_examples_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"num_examples: got .*, wanted an integer from 1 to 2\^53"):
        ClientStats(num_examples=bad, num_tokens=1)


@pytest.mark.parametrize("bad", [-1, 2**53 + 1, 2.5, math.inf, False])
def test_a_count_of_tokens_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"num_tokens: got .*, wanted an integer from 0 to 2\^53"):
        ClientStats(num_examples=1, num_tokens=bad)


def test_an_integer_of_any_length_is_named_by_its_bits():
    with pytest.raises(ValueError, match="num_tokens: got an integer of 40001 bits"):
        ClientStats(num_examples=1, num_tokens=1 << 40000)


@pytest.mark.parametrize("bad", ["1.0", None, True, 1 << 2000])
def test_a_loss_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="losses: got .*, wanted numbers"):
        ClientStats(num_examples=1, num_tokens=1, losses=[1.0, bad])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -3.0, 2, 1e300])
def test_an_odd_loss_is_a_loss(odd):
    assert ClientStats(num_examples=1, num_tokens=1, losses=[odd]).losses == [odd]


def test_the_edges_are_allowed():
    ClientStats(num_examples=1, num_tokens=0)
    ClientStats(num_examples=2**53, num_tokens=2**53)
