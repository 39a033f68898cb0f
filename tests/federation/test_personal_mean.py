"""The mean of what clients keep, added up anew and as a running sum."""

import random
from fractions import Fraction

import pytest
import torch

from fl_lightning.federation.personal_mean import MAX_ADDED_ANEW, RunningSum, mean_personal, next_sums
from fl_lightning.federation.state import clients_by_department

B = "w.lora_B.weight"


def test_mean_of_personal_b_is_weighted_and_stays_inside_the_department():
    personal = {
        "hr/client_0": {B: torch.tensor([2.0])},
        "hr/client_1": {B: torch.tensor([6.0])},
        "hr2/client_0": {B: torch.tensor([1000.0])},
    }
    # (1·2 + 3·6) / 4 = 5
    examples = {"hr/client_0": 1, "hr/client_1": 3, "hr2/client_0": 9}
    mean = mean_personal(personal, examples, clients_by_department(personal)["hr"])
    assert mean[B].item() == 5.0
    assert mean[B].dtype == torch.float32


def test_mean_of_nobodys_b_is_empty():
    assert mean_personal({"it/client_0": {B: torch.ones(1)}}, {"it/client_0": 1}, ["hr/client_0"]) == {}


@pytest.fixture
def factors():
    """{client_id: (B, num_examples)}: values from 1e-6 to 1e4 of both signs."""
    torch.manual_seed(1)
    scales = 10.0 ** torch.linspace(-6, 4, 100)
    return {f"hr/client_{k}": ({B: torch.randn(5) * scale}, 1 + k % 7) for k, scale in enumerate(scales)}


def exact_mean(items):
    """With rational numbers, rounded once to fp64 and then to fp32."""
    total = sum(weight for _, weight in items)
    sums = [sum(weight * Fraction(state[B][i].item()) for state, weight in items) for i in range(5)]
    return torch.tensor([float(s / total) for s in sums], dtype=torch.float64).float()


def test_a_running_sum_is_exact(factors):
    running = RunningSum()
    for state, weight in factors.values():
        running.add(state, weight)
    assert torch.equal(running.mean()[B], exact_mean(list(factors.values())))


def test_a_running_sum_does_not_remember_what_was_taken_out(factors):
    items = list(factors.values())
    straight, wandering = RunningSum(), RunningSum()
    for state, weight in items[:50]:
        straight.add(state, weight)
    steps = [(item, 1) for item in items]
    random.Random(2).shuffle(steps)
    for (state, weight), sign in [*steps, *((item, -1) for item in items[50:])]:
        wandering.add(state, sign * weight)
    assert wandering.total == straight.total
    assert torch.equal(wandering.mean()[B], straight.mean()[B])


def test_a_running_sum_and_the_sum_anew_are_equal_in_fp32(factors):
    personal = {name: state for name, (state, _) in factors.items()}
    examples = {name: weight for name, (_, weight) in factors.items()}
    sums = next_sums({}, ({}, {}), (personal, examples), personal, {"hr": list(personal)})
    assert torch.equal(sums["hr"].mean()[B], mean_personal(personal, examples, personal)[B])


def test_few_clients_have_no_running_sum(factors):
    personal = {name: factors[name][0] for name in list(factors)[:MAX_ADDED_ANEW]}
    assert next_sums({}, ({}, {}), (personal, dict.fromkeys(personal, 1)), personal, {"hr": list(personal)}) == {}
