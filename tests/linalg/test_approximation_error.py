import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.linalg.approximation_error import averaging_error, relative, result_error

WEIGHTS = {"x": 3, "y": 1, "z": 4}


def test_by_hand(two_by_two):
    # BA: [[1, 0], [0, 0]] and [[0, 0], [0, 1]]; mean I/2. B̄ = (½, ½)ᵀ, Ā = (½, ½): all ¼. I/2 − ¼ = ±¼: norm ½ of 1/√2.
    clients = {"x": two_by_two([[1.0], [0.0]], [[1.0, 0.0]]), "y": two_by_two([[0.0], [1.0]], [[0.0, 1.0]])}
    error = averaging_error(clients, {"x": 1, "y": 1}, 7.0)
    assert error.layers == {"q": pytest.approx(math.sqrt(0.5))}
    assert error.overall == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("shapes", [{"q": (6, 6)}, {"v": (4, 12), "q": (12, 12)}, {"embed": (5, 90)}])
def test_it_is_the_dense_computation(make_clients, dense, dense_mean, shapes):
    clients = make_clients({"x": 3, "y": 3, "z": 3}, shapes=shapes)
    whole = dense_mean(clients, WEIGHTS, 2.0)
    mean = {n: sum(WEIGHTS[c] * clients[c][n].double() for c in clients) / 8 for n in clients["x"]}
    averaged = dense(mean, 2.0)
    error = averaging_error(clients, WEIGHTS, 2.0)
    missed = {layer: (whole[layer] - averaged[layer]).norm() for layer in shapes}
    for layer in shapes:
        assert error.layers[layer] == pytest.approx((missed[layer] / whole[layer].norm()).item(), rel=1e-10)
    total = math.hypot(*(w.norm() for w in whole.values()))
    assert error.overall == pytest.approx(math.hypot(*missed.values()) / total, rel=1e-10)


def test_it_is_the_covariance_of_the_factors(make_clients, dense_mean):
    clients = make_clients({"x": 3, "y": 3, "z": 3}, shapes={"v": (4, 12)})
    a, b = "v.lora_A.weight", "v.lora_B.weight"
    mean = {n: sum(WEIGHTS[c] / 8 * clients[c][n].double() for c in clients) for n in (a, b)}
    covariance = sum(
        WEIGHTS[c] / 8 * (clients[c][b].double() - mean[b]) @ (clients[c][a].double() - mean[a]) for c in clients
    )
    wanted = covariance.norm() / dense_mean(clients, WEIGHTS)["v"].norm()
    assert averaging_error(clients, WEIGHTS).layers["v"] == pytest.approx(wanted.item(), rel=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 9999), st.floats(0.1, 10), st.floats(0.01, 100))
def test_neither_scale_nor_sum_of_weights_matters(seed, scale, factor):
    draw = torch.Generator().manual_seed(seed)
    clients = {
        c: {"q.lora_A.weight": torch.randn(2, 5, generator=draw), "q.lora_B.weight": torch.randn(4, 2, generator=draw)}
        for c in WEIGHTS
    }
    wanted = averaging_error(clients, WEIGHTS).overall
    found = averaging_error(clients, {c: factor * w for c, w in WEIGHTS.items()}, scale).overall
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("shared", ["lora_A", "lora_B"])
def test_nothing_is_lost_where_one_factor_is_shared(make_clients, shared):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    for state in clients.values():
        state.update({n: clients["x"][n] for n in state if shared in n})
    assert averaging_error(clients, WEIGHTS).overall < 1e-15


def test_identical_clients_and_a_single_one_lose_nothing(make_state):
    state = make_state(4)
    assert averaging_error({"x": state}, {"x": 3}).overall == 0.0
    assert averaging_error(dict.fromkeys(WEIGHTS, state), WEIGHTS).overall < 1e-15


def test_zero_updates_have_no_error(make_clients):
    clients = make_clients({"x": 4, "y": 4})
    for state in clients.values():
        state.update({n: torch.zeros_like(t) for n, t in state.items() if "lora_B" in n})
    assert averaging_error(clients, {"x": 1, "y": 1}).overall == 0.0
    assert result_error(clients, {"x": 1, "y": 1}, 1.0, clients["x"], 1.0).overall == 0.0


def test_an_error_beside_nothing_is_infinite():
    assert relative({"q": 1.0}, {"q": 0.0}).layers == {"q": math.inf}
    assert relative({}, {}).overall == 0.0


def test_the_averaged_state_has_the_averaging_error(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    found = result_error(clients, WEIGHTS, 2.0, average_factors(clients, WEIGHTS, 2.0), 2.0)
    wanted = averaging_error(clients, WEIGHTS, 2.0)
    assert found.layers == {layer: pytest.approx(e, rel=1e-6) for layer, e in wanted.layers.items()}
    assert found.overall == pytest.approx(wanted.overall, rel=1e-6)


def test_a_result_of_any_rank_is_measured(make_clients, make_state, dense, dense_mean):
    clients, scales = make_clients({"x": 4, "y": 8, "z": 32}), {"x": 4.0, "y": 2.0, "z": 0.5}
    assert result_error(clients, WEIGHTS, scales, stack_factors(clients, WEIGHTS, scales), 1.0).overall < 1e-6
    other = make_state(5, seed=77)
    error = result_error(clients, WEIGHTS, scales, other, 3.0)
    whole, got = dense_mean(clients, WEIGHTS, scales), dense(other, 3.0)
    for layer in whole:
        wanted = ((whole[layer] - got[layer]).norm() / whole[layer].norm()).item()
        assert error.layers[layer] == pytest.approx(wanted, rel=1e-10)


def test_ranks_and_scales_that_differ_have_no_average(make_clients):
    clients = make_clients({"x": 4, "y": 8})
    with pytest.raises(ValueError, match=r"client y, layer h\.0\.q_proj: expected rank 4 as for client x, got 8"):
        averaging_error(clients, {"x": 1, "y": 1})
    with pytest.raises(ValueError, match=r"client y: expected scale 2\.0 as for client x, got 4\.0"):
        averaging_error(clients, {"x": 1, "y": 1}, {"x": 2.0, "y": 4.0})


def test_a_result_that_does_not_fit_is_refused(make_state):
    state = make_state(2)
    with pytest.raises(ValueError, match=r"h\.0\.v_proj\.lora_A\.weight: expected equal names in the result"):
        result_error({"x": state}, {"x": 1}, 1.0, {n: t for n, t in state.items() if "q_proj" in n}, 1.0)
    wrong = state | {"h.0.q_proj.lora_A.weight": torch.ones(2, 9)}
    with pytest.raises(ValueError, match=r"result, layer h\.0\.q_proj: expected .*, got B \(24, 2\) and A \(2, 9\)"):
        result_error({"x": state}, {"x": 1}, 1.0, wrong, 1.0)
