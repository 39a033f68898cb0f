import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.aggregation.products.residual import average_with_residual
from fl_lightning.linalg.approximation_error import averaging_error

WEIGHTS = {"x": 3, "y": 1, "z": 4}


def test_by_hand(two_by_two):
    # 2·(I/2) − 2·[[¼, ¼], [¼, ¼]] = [[½, −½], [−½, ½]]
    clients = {"x": two_by_two([[1.0], [0.0]], [[1.0, 0.0]]), "y": two_by_two([[0.0], [1.0]], [[0.0, 1.0]])}
    mean, residual = average_with_residual(clients, {"x": 5, "y": 5}, 2.0)
    assert mean["q.lora_A.weight"].tolist() == [[0.5, 0.5]]
    assert mean["q.lora_B.weight"].tolist() == [[0.5], [0.5]]
    up, down = residual["q"]
    assert up.shape == (2, 1)
    assert torch.allclose(up @ down, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]), atol=1e-6)


@pytest.mark.parametrize("shapes", [{"q": (24, 24), "v": (8, 24)}, {"embed": (5, 90)}, {"v": (60, 90)}])
def test_mean_and_residual_together_are_the_exact_mean_product(make_clients, dense, dense_mean, far, shapes):
    clients = make_clients({"x": 4, "y": 4, "z": 4}, shapes=shapes)
    mean, residual = average_with_residual(clients, WEIGHTS, 2.0)
    averaged, wanted = dense(mean, 2.0), dense_mean(clients, WEIGHTS, 2.0)
    assert set(residual) == set(shapes)
    for layer, (up, down) in residual.items():
        assert far(averaged[layer] + up.double() @ down.double(), wanted[layer]) < 1e-6
        assert up.dtype == down.dtype == torch.float32
        assert up.shape[1] == down.shape[0] == min(8, *shapes[layer])  # (n − 1) r, no more than the matrix has


def test_the_mean_is_fedavgs(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    mean, wanted = average_with_residual(clients, WEIGHTS, 2.0).mean, average_factors(clients, WEIGHTS, 2.0)
    assert list(mean) == list(wanted)
    assert all(torch.equal(mean[n], wanted[n]) for n in wanted)


def test_its_norm_is_the_averaging_error(make_clients, dense_mean):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    whole, error = dense_mean(clients, WEIGHTS, 2.0), averaging_error(clients, WEIGHTS, 2.0)
    for layer, (up, down) in average_with_residual(clients, WEIGHTS, 2.0).residual.items():
        assert ((up @ down).norm() / whole[layer].norm()).item() == pytest.approx(error.layers[layer], rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 4))
def test_the_rank_is_bounded_and_nothing_is_lost(seed, count, rank):
    draw = torch.Generator().manual_seed(seed)
    a, b = "v.lora_A.weight", "v.lora_B.weight"
    clients = {
        str(i): {a: torch.randn(rank, 40, generator=draw), b: torch.randn(30, rank, generator=draw)}
        for i in range(count)
    }
    mean, residual = average_with_residual(clients, dict.fromkeys(clients, 0.7), 3.0)
    up, down = residual["v"]
    assert up.shape[1] <= (count - 1) * rank
    wanted = sum(3.0 / count * s[b].double() @ s[a].double() for s in clients.values())
    found = 3.0 * mean[b].double() @ mean[a].double() + up.double() @ down.double()
    assert (found - wanted).norm() <= 1e-6 * sum(s[b].norm() * s[a].norm() for s in clients.values())


def test_one_client_and_identical_clients_leave_no_residual(make_state):
    state = make_state(4)
    for names in ("x", "xyz"):
        mean, residual = average_with_residual(dict.fromkeys(names, state), {c: WEIGHTS[c] for c in names}, 2.0)
        assert all(torch.equal(mean[n], state[n]) for n in state)
        assert {tuple(u.shape) for u, _ in residual.values()} == {(24, 0), (8, 0)}
        assert all((u @ v).shape == (u.shape[0], 24) for u, v in residual.values())


def test_a_shared_a_leaves_no_residual(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    for state in clients.values():
        state.update({n: clients["x"][n] for n in state if "lora_A" in n})
    assert {u.shape[1] for u, _ in average_with_residual(clients, WEIGHTS).residual.values()} == {0}


def test_zero_updates_leave_no_residual(make_clients):
    clients = make_clients({"x": 4, "y": 4})
    for state in clients.values():
        state.update({n: torch.zeros_like(t) for n, t in state.items() if "lora_B" in n})
    assert {u.shape[1] for u, _ in average_with_residual(clients, {"x": 1, "y": 1}).residual.values()} == {0}


def test_products_that_cancel_come_back_as_a_residual(two_by_two):
    # B A and B (−A): the mean product is zero, B̄ = B and Ā = 0.
    clients = {"x": two_by_two([[1.0], [2.0]], [[1.0, 1.0]]), "y": two_by_two([[1.0], [2.0]], [[-1.0, -1.0]])}
    mean, residual = average_with_residual(clients, {"x": 1, "y": 1})
    assert not mean["q.lora_A.weight"].any()
    assert residual["q"].up.shape == (2, 0)
    # B A and (−B)(−A): the mean product is B A, both means are zero.
    clients["y"] = two_by_two([[-1.0], [-2.0]], [[-1.0, -1.0]])
    mean, residual = average_with_residual(clients, {"x": 1, "y": 1})
    assert not any(t.any() for t in mean.values())
    assert torch.allclose(residual["q"].up @ residual["q"].down, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), atol=1e-6)


def test_the_order_of_clients_does_not_matter_to_the_last_bit(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    first = average_with_residual(clients, WEIGHTS).residual
    again = average_with_residual({c: clients[c] for c in "zxy"}, {c: WEIGHTS[c] for c in "yzx"}).residual
    assert list(first) == list(again)
    for layer in first:
        assert all(torch.equal(x, y) for x, y in zip(first[layer], again[layer], strict=True))


def test_ranks_or_scales_that_differ_are_refused(make_clients):
    clients = make_clients({"x": 4, "y": 8})
    with pytest.raises(ValueError, match=r"client y: .*expected shape \(24, 4\), got \(24, 8\) \(as for client x"):
        average_with_residual(clients, {"x": 1, "y": 1})
    with pytest.raises(ValueError, match=r"client y: expected scale 2\.0 as for client x, got 1\.0"):
        average_with_residual(clients, {"x": 1, "y": 1}, {"x": 2.0, "y": 1.0})
