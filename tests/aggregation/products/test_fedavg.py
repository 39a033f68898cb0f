import pytest
import torch

from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.flora import flora_weighted_aggregate
from fl_lightning.state import select

WEIGHTS = {"x": 3, "y": 1, "z": 0.5}


def test_by_hand(two_by_two):
    # A: (3·[1, 2] + [5, 6]) / 4 = [2, 3]; B: (3·[0, 4] + [8, 0]) / 4 = [2, 3]
    clients = {"x": two_by_two([[0.0], [4.0]], [[1.0, 2.0]]), "y": two_by_two([[8.0], [0.0]], [[5.0, 6.0]])}
    mean = average_factors(clients, {"x": 3, "y": 1})
    assert mean["q.lora_A.weight"].tolist() == [[2.0, 3.0]]
    assert mean["q.lora_B.weight"].tolist() == [[2.0], [3.0]]


def test_it_is_the_dense_mean_of_each_factor(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4}, shapes={"embed": (5, 90), "v": (8, 24)})
    mean = average_factors(clients, WEIGHTS)
    for name, tensor in mean.items():
        wanted = sum(WEIGHTS[c] / 4.5 * clients[c][name].double() for c in clients)
        assert torch.allclose(tensor.double(), wanted, rtol=0, atol=1e-6)
        assert tensor.dtype == torch.float32


def test_it_has_the_bits_of_flora_without_residual_and_with_a_full_step(make_clients, make_state):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    mean = average_factors(clients, WEIGHTS)
    plain = flora_weighted_aggregate([(clients[c], WEIGHTS[c]) for c in sorted(clients)], use_residual=False)
    assert all(torch.equal(mean[n], plain[n]) for n in plain)
    full = flora_weighted_aggregate([(clients[c], WEIGHTS[c]) for c in sorted(clients)], make_state(4, 99), 1.0)
    assert all(torch.allclose(mean[n], full[n], atol=1e-6) for n in plain)


def test_the_order_of_clients_does_not_matter_to_the_last_bit(make_clients):
    clients = make_clients({"x": 4, "y": 4, "z": 4})
    mean = average_factors(clients, WEIGHTS)
    again = average_factors({c: clients[c] for c in "zxy"}, {c: WEIGHTS[c] for c in "yzx"})
    assert list(mean) == list(again) == sorted(mean)
    assert all(torch.equal(mean[n], again[n]) for n in mean)


def test_a_single_client_is_itself_in_memory_of_its_own(make_state):
    state = make_state(4)
    mean = average_factors({"x": state}, {"x": 0.3})
    assert all(torch.equal(mean[n], state[n]) for n in state)
    mean["h.0.q_proj.lora_A.weight"].fill_(9.0)
    assert not (state["h.0.q_proj.lora_A.weight"] == 9.0).any()


def test_a_alone_may_be_averaged(make_clients):
    clients = make_clients({"x": 4, "y": 4})
    both = average_factors(clients, {"x": 1, "y": 2})
    alone = average_factors({c: select(s, "a") for c, s in clients.items()}, {"x": 1, "y": 2})
    assert all(torch.equal(t, both[n]) for n, t in alone.items())
    assert len(alone) == 2


def test_what_cannot_be_averaged_is_refused(make_clients, make_state):
    clients, weights = make_clients({"x": 4, "y": 8}), {"x": 1, "y": 1}
    with pytest.raises(
        ValueError, match=r"client y: h\.0\.q_proj\.lora_B\.weight: expected shape \(24, 4\), got \(24, 8\) .*x"
    ):
        average_factors(clients, weights)
    same = make_clients({"x": 4, "y": 4})
    with pytest.raises(ValueError, match=r"client y: expected scale 2\.0 as for client x, got 1\.0"):
        average_factors(same, weights, {"x": 2.0, "y": 1.0})
    with pytest.raises(ValueError, match="client y: 2 tensors missing, first h"):
        average_factors(same | {"y": select(make_state(4), "a")}, weights)
    with pytest.raises(ValueError, match="clients to combine: expected at least one"):
        average_factors({}, {})
    same["x"]["h.0.q_proj.lora_A.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"client x: h\.0\.q_proj\.lora_A\.weight: not finite"):
        average_factors(same, weights)
