import dataclasses
import inspect

import pytest
import torch

from fl_lightning.aggregation import products
from fl_lightning.aggregation.products import COMBINERS
from fl_lightning.linalg.approximation_error import averaging_error, result_error
from fl_lightning.state import select

STATES = ("fedavg", "stack", "residual", "svd")


def combine(name, clients, weights, scales=2.0):
    """The adapter of the result and its scale."""
    found = COMBINERS[name].function(clients, weights, scales, *((4, 2.0) if name == "svd" else ()))
    state = {"residual": lambda: found.mean, "svd": lambda: found.state}.get(name, lambda: found)()
    return state, (1.0 if name == "stack" else 2.0)


def test_every_method_has_a_paragraph_and_a_paper():
    assert list(COMBINERS) == ["flora", "fedavg", "stack", "residual", "svd"]
    for name, combiner in COMBINERS.items():
        assert f"\n``{name}``" in products.__doc__
        assert combiner.paper in inspect.getmodule(combiner.function).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        COMBINERS["svd"].exact = True


def test_every_field_is_explained():
    assert all(f"{field.name}: " in products.Combiner.__doc__ for field in dataclasses.fields(products.Combiner))


@pytest.mark.parametrize("name", STATES)
def test_ranks_may_differ_where_it_says_so(make_clients, name):
    clients = make_clients({"x": 4, "y": 8})
    if COMBINERS[name].same_rank:
        with pytest.raises(ValueError, match=r"client y: .*\(24, 8\), wanted \(24, 4\)"):
            combine(name, clients, {"x": 1, "y": 1})
    else:
        combine(name, clients, {"x": 1, "y": 1})


@pytest.mark.parametrize("name", STATES)
def test_b_is_wanted_where_it_says_so(make_clients, name):
    clients = {c: select(s, "a") for c, s in make_clients({"x": 4, "y": 4}).items()}
    if COMBINERS[name].both_factors:
        with pytest.raises(ValueError, match="client x: .*wanted both factors"):
            combine(name, clients, {"x": 1, "y": 1})
    else:
        combine(name, clients, {"x": 1, "y": 1})


@pytest.mark.parametrize("name", STATES)
def test_the_rank_changes_where_it_says_so(make_clients, name):
    clients = make_clients({"x": 4, "y": 4})
    state, _ = combine(name, clients, {"x": 1, "y": 1})
    changed = {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in clients["x"].items()}
    assert changed == COMBINERS[name].changes_rank


@pytest.mark.parametrize("name", STATES)
def test_the_result_is_exact_where_it_says_so(make_clients, name):
    clients, weights = make_clients({"x": 4, "y": 4}), {"x": 1, "y": 3}
    state, scale = combine(name, clients, weights)
    error = result_error(clients, weights, 2.0, state, scale).overall
    if name == "residual":  # with what goes into the base
        assert error == pytest.approx(averaging_error(clients, weights).overall, rel=1e-5)
        for layer, (up, down) in COMBINERS[name].function(clients, weights, 2.0).residual.items():
            b, a = f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"
            state[b], state[a] = torch.cat([2.0 * state[b], up], dim=1), torch.cat([state[a], down])
        error = result_error(clients, weights, 2.0, state, 1.0).overall
    assert (error < 1e-6) == COMBINERS[name].exact


@pytest.mark.parametrize("name", STATES)
def test_a_shared_a_is_kept_where_the_gauge_is(make_clients, name):
    clients = make_clients({"x": 4, "y": 4})
    clients["y"].update(select(clients["x"], "a"))
    state, _ = combine(name, clients, {"x": 1, "y": 3})
    wanted = select(clients["x"], "a")
    kept = all(state[n].shape == t.shape and torch.allclose(state[n], t, atol=1e-6) for n, t in wanted.items())
    assert kept == COMBINERS[name].keeps_gauge
