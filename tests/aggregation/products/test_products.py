"""Properties of all combiners, side by side."""

import inspect
from typing import get_args

import pytest
import torch

from fl_lightning.aggregation import products
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.aggregation.products.residual import average_with_residual
from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.config.federation import CombinerName
from fl_lightning.linalg.approximation_error import averaging_error, result_error
from fl_lightning.linalg.truncation import decompose, truncate
from fl_lightning.state import select


def truncated(clients, weights, scales):
    return truncate(decompose(clients, weights, scales), 4, 2.0).state


COMBINERS = {
    "fedavg": (average_factors, "1602.05629"),
    "stack": (stack_factors, "2409.05976"),
    "residual": (lambda *args: average_with_residual(*args).mean, "2410.09432"),
    "svd": (truncated, "2402.11505"),
}
SAME_RANK = {"fedavg", "residual"}
BOTH_FACTORS = {"stack", "residual", "svd"}
EXACT = {"stack", "residual"}
KEEPS_BASIS = {"fedavg", "residual"}
every_combiner = pytest.mark.parametrize("name", COMBINERS)


def combine(name, clients, weights, scales=2.0):
    """The adapter of the result and its scale."""
    return COMBINERS[name][0](clients, weights, scales), (1.0 if name == "stack" else 2.0)


def test_every_combiner_is_in_the_table_with_its_paper():
    assert {"flora", *COMBINERS} == set(get_args(CombinerName))
    assert set(KEEP_PRODUCTS) == BOTH_FACTORS
    for name, (_, paper) in COMBINERS.items():
        assert f"\n``{name}``" in products.__doc__
        assert paper in products.__doc__
    for function in (average_factors, stack_factors, average_with_residual, truncate):
        assert any(paper in inspect.getmodule(function).__doc__ for _, paper in COMBINERS.values())


@every_combiner
def test_ranks_may_differ_unless_factors_are_averaged(make_clients, name):
    clients = make_clients({"x": 4, "y": 8})
    if name in SAME_RANK:
        with pytest.raises(ValueError, match=r"client y: .*\(24, 4\).*\(24, 8\)"):
            combine(name, clients, {"x": 1, "y": 1})
    else:
        combine(name, clients, {"x": 1, "y": 1})


@every_combiner
def test_products_need_both_factors(make_clients, name):
    clients = {c: select(s, "a") for c, s in make_clients({"x": 4, "y": 4}).items()}
    if name in BOTH_FACTORS:
        with pytest.raises(ValueError, match="client x: .*expected both factors"):
            combine(name, clients, {"x": 1, "y": 1})
    else:
        combine(name, clients, {"x": 1, "y": 1})


@every_combiner
def test_only_stacking_changes_the_rank(make_clients, name):
    clients = make_clients({"x": 4, "y": 4})
    state, _ = combine(name, clients, {"x": 1, "y": 1})
    changed = {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in clients["x"].items()}
    assert changed == (name == "stack")


@every_combiner
def test_stacking_and_residual_are_exact(make_clients, name):
    clients, weights = make_clients({"x": 4, "y": 4}), {"x": 1, "y": 3}
    state, scale = combine(name, clients, weights)
    error = result_error(clients, weights, 2.0, state, scale).overall
    if name == "residual":  # together with the residual
        assert error == pytest.approx(averaging_error(clients, weights).overall, rel=1e-5)
        for layer, (up, down) in average_with_residual(clients, weights, 2.0).residual.items():
            b, a = f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"
            state[b], state[a] = torch.cat([2.0 * state[b], up], dim=1), torch.cat([state[a], down])
        error = result_error(clients, weights, 2.0, state, 1.0).overall
    assert (error < 1e-6) == (name in EXACT)


@every_combiner
def test_averaged_factors_keep_a_common_a(make_clients, name):
    clients = make_clients({"x": 4, "y": 4})
    clients["y"].update(select(clients["x"], "a"))
    state, _ = combine(name, clients, {"x": 1, "y": 3})
    common = select(clients["x"], "a")
    same = all(state[n].shape == t.shape and torch.allclose(state[n], t, atol=1e-6) for n, t in common.items())
    assert same == (name in KEEPS_BASIS)
