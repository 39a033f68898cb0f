import pytest
import torch

from fl_lightning.linalg.own_mixture import (
    ALPHA,
    alpha_of,
    factors_of,
    gates_like,
    is_gated,
    own_layout,
    rest_of,
    used_adapter,
    weights_of,
)

A, B, GATE = "m.q.lora_A.weight", "m.q.lora_B.weight", "m.q.fedalt_gate.weight"


def adapter(value):
    return {A: torch.full((1, 4), value), B: torch.full((3, 1), value)}


def test_a_state_is_its_factors_and_what_weighs_them():
    own = {**adapter(1.0), ALPHA: torch.tensor([0.25])}
    assert (list(factors_of(own)), list(weights_of(own)), alpha_of(own)) == ([A, B], [ALPHA], 0.25)
    assert (weights_of(adapter(1.0)), alpha_of(adapter(1.0)), is_gated(own)) == ({}, None, False)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [0.0, 6.0]), (0.25, [1.0, 4.5]), (1.0, [4.0, 0.0])])
def test_alpha_weighs_both_products(alpha, expected):
    used = used_adapter({**adapter(2.0), ALPHA: torch.tensor([alpha])}, adapter(6.0), relative_scaling=2.0)
    assert used.keys() == {A, B}
    assert used[B].tolist() == [expected] * 3
    assert used[A].tolist() == [[2.0] * 4, [6.0] * 4]


def test_a_fixed_weight_is_in_the_scaling_alone():
    assert used_adapter(adapter(2.0), adapter(6.0), 0.5)[B].tolist() == [[1.0, 6.0]] * 3
    assert used_adapter(adapter(2.0), {}, 0.5)[B].tolist() == [[1.0]] * 3


def test_a_gated_adapter_keeps_both_products_apart():
    own = {**adapter(2.0), **gates_like(adapter(2.0), seed=3)}
    used = used_adapter(own, adapter(6.0), 0.5)
    assert is_gated(used)
    assert factors_of(used)[B].tolist() == [[1.0]] * 3
    assert rest_of(used).keys() == {A, B}
    assert rest_of(used)[B].tolist() == [[6.0]] * 3
    assert torch.equal(used[GATE], own[GATE])
    assert rest_of(used_adapter(own, {})) == {}


def test_the_layout_of_an_own_state_has_what_is_there():
    initial = adapter(0.0)
    assert own_layout(initial, initial).keys() == {A, B}
    assert own_layout({ALPHA: torch.ones(1)}, initial)[ALPHA].shape == (1,)
    assert own_layout({GATE: torch.ones(1)}, initial)[GATE].shape == (2, 4)


def test_gates_are_drawn_from_the_seed_or_zero():
    first, again, other = (gates_like(adapter(0.0), seed)[GATE] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.abs().max()) <= 0.5
    assert not gates_like(adapter(0.0))[GATE].any()
