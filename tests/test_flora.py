import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning import flora
from fl_lightning.flora import WeightedMean, apply_step, flora_weighted_aggregate

A, B = "q.lora_A.weight", "q.lora_B.weight"


def one(value):
    return {A: torch.tensor([value])}


def random_states(count, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [
        {A: torch.randn(4, 7, generator=draw).to(dtype), B: torch.randn(9, 4, generator=draw).to(dtype)}
        for _ in range(count)
    ]


def test_residual_step_by_hand():
    # θ = 2, clients 3 (weight 1) and 7 (weight 3): Σ w (θ_c − θ) = 0.25·1 + 0.75·5 = 4; θ' = 2 + 0.1·4 = 2.4
    new = flora_weighted_aggregate([(one(3.0), 1), (one(7.0), 3)], one(2.0), momentum=0.1)
    assert new[A].item() == pytest.approx(2.4, rel=1e-7)


def test_the_default_momentum_is_a_tenth():
    # 0 + 0.1 · (10 − 0) = 1
    assert flora_weighted_aggregate([(one(10.0), 5)], one(0.0))[A].item() == pytest.approx(1.0, rel=1e-7)


def test_momentum_one_goes_all_the_way_to_the_mean():
    # (1·3 + 3·7) / 4 = 6
    assert flora_weighted_aggregate([(one(3.0), 1), (one(7.0), 3)], one(2.0), momentum=1.0)[A].item() == 6.0


def test_without_residual_the_previous_state_does_not_matter():
    # (1·3 + 3·7) / 4 = 6
    new = flora_weighted_aggregate([(one(3.0), 1), (one(7.0), 3)], one(-50.0), momentum=0.1, use_residual=False)
    assert new[A].item() == 6.0


def test_without_a_previous_state_it_is_the_weighted_mean():
    # (2·1 + 6·5) / 8 = 4
    assert flora_weighted_aggregate([(one(1.0), 2), (one(5.0), 6)])[A].item() == 4.0


def test_weights_are_relative():
    states = random_states(3)
    few = flora_weighted_aggregate(zip(states, [1, 2, 5], strict=True))
    many = flora_weighted_aggregate(zip(states, [100, 200, 500], strict=True))
    assert torch.allclose(few[A], many[A], rtol=0, atol=1e-6)


def test_both_factors_match_the_one_line_reference():
    states, weights, start = random_states(5), [3, 1, 4, 1, 5], random_states(1, seed=9)[0]
    new = flora_weighted_aggregate(zip(states, weights, strict=True), start, momentum=0.3)
    for name in (A, B):
        theta = start[name].double().numpy()
        mean = np.average([s[name].double().numpy() for s in states], axis=0, weights=weights)
        np.testing.assert_allclose(new[name].numpy(), theta + 0.3 * (mean - theta), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_distance_to_a_fixed_point_contracts_by_one_minus_momentum(momentum):
    # Clients that always return x*: ‖x_T − x*‖ = (1 − momentum)^T ‖x_0 − x*‖; after ten rounds of 0.1 that is 0.3487.
    start, goal = random_states(2, seed=3)
    x, before = start, (start[A] - goal[A]).norm().item()
    for rounds in range(1, 11):
        x = flora_weighted_aggregate([(goal, 2), (goal, 7)], x, momentum=momentum)
        expected = (1 - momentum) ** rounds * before
        assert (x[A] - goal[A]).norm().item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_clients_that_did_not_move_leave_the_state():
    start = random_states(1)[0]
    new = flora_weighted_aggregate([(start, 3), (start, 4)], start, momentum=0.7)
    assert torch.equal(new[A], start[A])
    assert torch.equal(new[B], start[B])


def test_result_is_fp32_and_sums_in_fp64():
    # In fp32 the 1 drowns in 2^25: 2^25 + 1 − 2^25 = 0. Mean of (2^25, 1, −2^25) = 1/3.
    states = [one(2.0**25), one(1.0), one(-(2.0**25))]
    new = flora_weighted_aggregate([(s, 1) for s in states])
    assert new[A].dtype == torch.float32
    assert new[A].item() == pytest.approx(1 / 3, rel=1e-6)


def test_half_precision_clients_are_averaged_in_full_precision():
    # 256 and 257 are neighbours that bf16 cannot tell apart half way: (256 + 258) / 2 = 257 needs fp32.
    states = [{A: torch.tensor([256.0], dtype=torch.bfloat16)}, {A: torch.tensor([258.0], dtype=torch.bfloat16)}]
    assert flora_weighted_aggregate([(s, 1) for s in states])[A].item() == 257.0


def test_inputs_are_left_alone():
    states, start = random_states(2), random_states(1, seed=5)[0]
    copies = [{n: t.clone() for n, t in s.items()} for s in (*states, start)]
    flora_weighted_aggregate([(s, 1) for s in states], start)
    for state, copy in zip((*states, start), copies, strict=True):
        assert torch.equal(state[A], copy[A])
        assert torch.equal(state[B], copy[B])


def test_the_result_shares_no_memory_with_a_single_client():
    client = one(1.0)
    new = flora_weighted_aggregate([(client, 1)])
    new[A].fill_(9.0)
    assert client[A].item() == 1.0


def test_items_may_be_a_generator_and_are_taken_one_at_a_time():
    def clients():
        yield one(1.0), 1
        yield one(3.0), 1

    assert flora_weighted_aggregate(clients())[A].item() == 2.0


def test_only_the_shared_factor_comes_back():
    # share: a hands over A alone, for clients and previous state alike.
    assert set(flora_weighted_aggregate([(one(1.0), 1)], one(0.0))) == {A}


def test_no_clients_are_refused():
    with pytest.raises(ValueError, match="expected at least one with a positive weight, got none"):
        flora_weighted_aggregate([], one(0.0))


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight: expected a positive finite number, got {weight}"):
        flora_weighted_aggregate([(one(1.0), weight)])


@pytest.mark.parametrize("momentum", [0, -0.1, 1.1, math.nan])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"momentum: expected a number in \(0, 1\], got {momentum}"):
        flora_weighted_aggregate([(one(1.0), 1)], one(0.0), momentum=momentum)


def test_clients_of_other_names_are_refused():
    with pytest.raises(ValueError, match=r"q\.lora_B\.weight: expected equal names in all states"):
        flora_weighted_aggregate([(one(1.0), 1), ({A: torch.ones(1), B: torch.ones(1)}, 1)])


def test_clients_of_other_shapes_are_refused_even_where_they_would_broadcast():
    with pytest.raises(ValueError, match=r"lora_A\.weight: expected shape \(3,\), got \(1,\)"):
        flora_weighted_aggregate([({A: torch.ones(3)}, 1), ({A: torch.ones(1)}, 1)])


def test_a_previous_state_of_other_names_is_refused():
    with pytest.raises(ValueError, match=r"q\.lora_B\.weight: .* got it in previous_global only"):
        flora_weighted_aggregate([(one(1.0), 1)], {A: torch.ones(1), B: torch.ones(1)})


def test_a_previous_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        flora_weighted_aggregate([({A: torch.ones(3)}, 1)], {A: torch.ones(1)})


def test_a_refused_state_leaves_the_running_mean_as_it_was():
    mean = WeightedMean()
    mean.add({A: torch.tensor([1.0]), B: torch.tensor([1.0])}, 1)
    with pytest.raises(ValueError, match="expected shape"):
        mean.add({A: torch.tensor([100.0]), B: torch.tensor([1.0, 2.0])}, 1)
    assert mean.value()[A].item() == 1.0


def test_running_mean_can_be_read_at_any_time():
    # 2; then (1·2 + 3·6) / 4 = 5
    mean = WeightedMean()
    mean.add(one(2.0), 1)
    assert mean.value()[A].item() == 2.0
    mean.add(one(6.0), 3)
    assert mean.value()[A].item() == 5.0
    assert mean.total == 4


def test_apply_step_casts_an_fp64_mean_to_fp32():
    mean = {A: torch.tensor([1.0], dtype=torch.float64)}
    assert apply_step(mean, one(0.0), momentum=0.5)[A].dtype == torch.float32
    assert apply_step(mean)[A].dtype == torch.float32


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 500), min_size=3, max_size=3))
def test_order_of_clients_does_not_matter(seed, weights):
    states, start = random_states(3, seed), random_states(1, seed + 1)[0]
    pairs = list(zip(states, weights, strict=True))
    results = [flora_weighted_aggregate(p, start, momentum=0.4) for p in itertools.permutations(pairs)]
    for result in results[1:]:
        for name in (A, B):
            assert torch.allclose(result[name], results[0][name], rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0))
def test_the_new_state_lies_between_the_old_one_and_the_mean(seed, momentum):
    client, start = random_states(2, seed)
    new = flora_weighted_aggregate([(client, 1)], start, momentum=momentum)
    low, high = torch.minimum(client[A], start[A]), torch.maximum(client[A], start[A])
    assert bool(((new[A] >= low - 1e-6) & (new[A] <= high + 1e-6)).all())


SHAPES = {"a": (3, 5), "b": (), "c": (0, 4), "d": (40, 9), "e": (2,), "f": (1, 7)}


def odd_states(count):
    draw = torch.Generator().manual_seed(1)
    return [{n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()} for _ in range(count)]


@pytest.mark.parametrize("block", [1, 20, 1 << 17])
def test_sums_have_the_bits_of_one_fp64_addition_a_state(monkeypatch, block):
    monkeypatch.setattr(flora, "_BLOCK", block)
    states, weights = odd_states(5), [3, 1, 4.5, 0.1, 7 / 3]
    wanted = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in SHAPES.items()}
    for state, weight in zip(states, weights, strict=True):
        for n, t in state.items():
            wanted[n].add_(t.double(), alpha=weight)
    mean, at_once = WeightedMean(), WeightedMean()
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    at_once.add_all(list(zip(states, weights, strict=True)))
    for n in SHAPES:
        assert torch.equal(mean.value()[n], wanted[n] / mean.total)
        assert torch.equal(at_once.value()[n], mean.value()[n])


def test_a_list_and_a_generator_give_the_same_bits():
    pairs = list(zip(odd_states(4), [1, 2.2, 3, 0.7], strict=True))
    listed, generated = flora_weighted_aggregate(pairs), flora_weighted_aggregate(pair for pair in pairs)
    assert list(listed) == list(SHAPES)
    assert all(torch.equal(listed[n], generated[n]) for n in SHAPES)


def test_states_may_be_transposed_and_require_gradients():
    view = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True).T
    mean = WeightedMean()
    mean.add({A: view}, 2)
    assert mean.value()[A].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert not mean.value()[A].requires_grad


def test_a_refused_state_among_several_leaves_nothing_of_them():
    mean = WeightedMean()
    with pytest.raises(ValueError, match="expected shape"):
        mean.add_all([({A: torch.ones(3)}, 1), ({A: torch.ones(1)}, 1)])
    mean.add(one(5.0), 2)  # not even the shape of the first
    assert mean.value()[A].item() == 5.0


def test_states_without_tensors_have_a_mean_without_tensors():
    assert flora_weighted_aggregate([({}, 1), ({}, 2)]) == {}


NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("as_generator", [True, False])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_item_that_is_not_finite_is_refused_with_its_number_and_tensors(value, as_generator):
    items = [(state, 1 + i) for i, state in enumerate(random_states(4))]
    items[2][0][B][3, 1] = value
    with pytest.raises(ValueError, match=r"item 2: expected finite values, got NaN or infinity in q\.lora_B\.weight"):
        flora_weighted_aggregate((item for item in items) if as_generator else items, random_states(1)[0])


def test_of_many_tensors_that_are_not_finite_the_first_three_are_named():
    state = {f"t{i}": torch.tensor([math.nan if i else 0.0]) for i in range(6)}
    with pytest.raises(ValueError, match=r"item 0: .* in t1, t2, t3 and 2 more"):
        flora_weighted_aggregate([(state, 1)])


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_previous_state_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match=r"previous_global: expected finite values .* in q\.lora_A\.weight"):
        flora_weighted_aggregate([(one(1.0), 1)], one(value))


def test_opposite_infinities_and_values_beyond_fp32_are_refused():
    with pytest.raises(ValueError, match="item 1"):
        flora_weighted_aggregate([(one(1.0), 1), (one(math.inf), 1), (one(-math.inf), 1)])
    with pytest.raises(ValueError, match="mean: expected values within fp32"):
        flora_weighted_aggregate([({A: torch.tensor([1e300], dtype=torch.float64)}, 1)])


def test_large_values_whose_sum_overflows_are_still_finite():
    state = {A: torch.full((4,), 1e308, dtype=torch.float64)}
    mean = WeightedMean()
    mean.add(state, 1)
    assert mean.value()[A].tolist() == [1e308] * 4


def test_after_a_refused_value_the_running_mean_cannot_be_read():
    mean = WeightedMean()
    mean.add(one(1.0), 1)
    with pytest.raises(ValueError, match="item 1"):
        mean.add(one(math.nan), 1)
    with pytest.raises(ValueError, match="got none"):
        mean.value()
    with pytest.raises(ValueError, match="start a new WeightedMean"):
        mean.add(one(1.0), 1)


@pytest.mark.parametrize("as_generator", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
def test_the_bits_are_those_of_the_formula_written_out(momentum, as_generator):
    start, *states = odd_states(6)
    weights = [3, 1, 4.5, 0.1, 7 / 3]
    items = list(zip(states, weights, strict=True))
    new = flora_weighted_aggregate((item for item in items) if as_generator else items, start, momentum)
    for name, theta in start.items():
        total = torch.zeros(theta.shape, dtype=torch.float64)
        for state, weight in items:
            total.add_(state[name].double(), alpha=weight)
        mean = total / (((((0.0 + 3) + 1) + 4.5) + 0.1) + 7 / 3)
        assert torch.equal(new[name], (theta.double() + momentum * (mean - theta.double())).to(torch.float32))
