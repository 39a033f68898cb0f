import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.server_optimizers.sgd import sgd
from fl_lightning.flora import WeightedMean, apply_step

A, B = "q.lora_A.weight", "q.lora_B.weight"


def random_states(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{A: torch.randn(4, 7, generator=draw), B: torch.randn(9, 4, generator=draw)} for _ in range(count)]


def residual(clients, start):
    """Σ w_c (θ_c − θ) in fp64, as a caller makes it."""
    mean = WeightedMean()
    mean.add_all(clients)
    return {name: value - start[name].double() for name, value in mean.value().items()}


def test_three_steps_by_hand():
    # θ = 2; Δ = 4, −2, 1 at rates 0.1, 0.5, 1: 2.4, 1.4, 2.4
    state = {A: torch.tensor([2.0])}
    for delta, rate, expected in [(4.0, 0.1, 2.4), (-2.0, 0.5, 1.4), (1.0, 1.0, 2.4)]:
        state, memory = sgd(state, {A: torch.tensor([delta])}, {}, rate=rate)
        assert state[A].item() == pytest.approx(expected, rel=1e-6)
        assert memory == {}


@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
def test_same_bits_as_the_step_of_flora(momentum):
    start, *clients = random_states(4)
    mean = WeightedMean()
    mean.add_all(list(zip(clients, [3, 1, 4], strict=True)))
    wanted = apply_step(mean.value(), start, momentum)
    new, _ = sgd(start, residual(list(zip(clients, [3, 1, 4], strict=True)), start), {}, rate=momentum)
    assert torch.equal(new[A], wanted[A])
    assert torch.equal(new[B], wanted[B])


@pytest.mark.parametrize("momentum", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_distance_to_a_fixed_point_contracts_by_one_minus_momentum(momentum):
    # Clients that always return x*: ‖x_T − x*‖ = (1 − momentum)^T ‖x_0 − x*‖, up to the rounding of x to fp32.
    start, goal = random_states(2, seed=3)
    goal = {
        name: tensor * 2.0**-10 for name, tensor in goal.items()
    }  # x is small where the distance is: fine roundings
    x, before = start, (start[A].double() - goal[A].double()).norm().item()
    for rounds in range(1, 13):
        x, _ = sgd(x, residual([(goal, 2), (goal, 7)], x), {}, rate=momentum)
        left = (x[A].double() - goal[A].double()).norm().item()
        assert left == pytest.approx((1 - momentum) ** rounds * before, rel=1e-6, abs=2.0**-24 * goal[A].norm().item())


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-100, 100, width=32),
    st.floats(-100, 100, width=32),
    st.floats(0.01, 1.0),
    st.integers(1, 20),
)
def test_contraction_holds_for_any_numbers(start, goal, momentum, rounds):
    x = {A: torch.tensor([start])}
    for _ in range(rounds):
        x, _ = sgd(x, {A: torch.tensor([goal], dtype=torch.float64) - x[A].double()}, {}, rate=momentum)
    # each of the rounds rounds x once, by at most half a unit in the last place of 100
    slack = 2.0**-18 / momentum
    assert abs(x[A].item() - goal) == pytest.approx((1 - momentum) ** rounds * abs(start - goal), rel=0, abs=slack)


def test_a_rate_of_zero_leaves_the_state_bit_for_bit():
    start, delta = random_states(2)
    new, _ = sgd(start, delta, {}, rate=0.0)
    assert torch.equal(new[A], start[A])


def test_memory_of_another_method_is_refused():
    with pytest.raises(ValueError, match=r"optimizer_state: expected \[\] or nothing, got \['m'\]"):
        sgd({A: torch.ones(1)}, {A: torch.ones(1)}, {"m": {}}, rate=0.1)
