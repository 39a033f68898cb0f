"""The calls of a step depend neither on the number of clients nor on a loop of ours; see docs/performance.md."""

import pytest

from benchmarks.systems.calls_per_step import bare_loop_calls, cohort_calls


def test_sixteen_clients_take_the_calls_of_one():
    one, many = (cohort_calls(count, layers=4)[0] for count in (1, 16))
    assert many / one < 1.1


@pytest.mark.slow
def test_one_client_takes_fewer_calls_than_a_bare_loop_with_peft():
    assert cohort_calls(1, layers=6)[0] / bare_loop_calls(layers=6)[0] < 0.9  # 0.87, as with 24 layers
