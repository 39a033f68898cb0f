import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.linalg.approximation_error import result_error
from fl_lightning.linalg.truncation import decompose, truncate

WEIGHTS = {"x": 3, "y": 1, "z": 4}
SCALES = {"x": 4.0, "y": 2.0, "z": 0.5}
SHAPES = {"embed": (40, 90), "q": (48, 48), "v": (16, 48)}


def truncated_svd(clients, weights, scales, rank, scale, spare=None):
    return truncate(decompose(clients, weights, scales), rank, scale, spare)


def test_by_hand(two_by_two):
    # ¾·2·diag(4, 0) + ¼·2·diag(0, 6) = diag(6, 3); rank 1: 6, and 3 of √45 are lost. B = √6 / s.
    clients = {"x": two_by_two([[4.0], [0.0]], [[1.0, 0.0]]), "y": two_by_two([[0.0], [6.0]], [[0.0, 1.0]])}
    state, error = truncated_svd(clients, {"x": 3, "y": 1}, 2.0, rank=1, scale=3.0)
    assert torch.allclose(state["q.lora_A.weight"], torch.tensor([[math.sqrt(6), 0.0]]), atol=1e-6)
    assert torch.allclose(state["q.lora_B.weight"], torch.tensor([[math.sqrt(6) / 3], [0.0]]), atol=1e-6)
    assert error.layers == {"q": pytest.approx(3 / math.sqrt(45))}
    assert error.overall == pytest.approx(3 / math.sqrt(45))


@pytest.mark.parametrize("rank", [1, 4, 8, 32, 44])
def test_a_department_of_mixed_ranks_loses_the_discarded_singular_values(make_clients, dense, dense_mean, far, rank):
    clients = make_clients({"x": 4, "y": 8, "z": 32}, shapes=SHAPES)
    state, error = truncated_svd(clients, WEIGHTS, SCALES, rank, 1.5)
    whole, found = dense_mean(clients, WEIGHTS, SCALES), dense(state, 1.5)
    for layer in SHAPES:
        left, values, right = torch.linalg.svd(whole[layer], full_matrices=False)
        best = left[:, :rank] * values[:rank] @ right[:rank]
        assert far(found[layer], best) < 1e-5
        lost = (values[rank:].norm() / values.norm()).item()
        assert error.layers[layer] == pytest.approx(lost, abs=1e-10)
        assert (whole[layer] - found[layer]).norm().item() == pytest.approx(
            lost * values.norm().item(), abs=1e-6 * values.norm().item()
        )
    assert {t.shape[0 if "_A" in n else 1] for n, t in state.items()} == {rank}
    assert error.overall == pytest.approx(result_error(clients, WEIGHTS, SCALES, state, 1.5).overall, abs=1e-6)


def test_each_client_gets_its_own_rank_and_scale_from_one_decomposition(make_clients, dense, dense_mean):
    ranks = {"x": 4, "y": 8, "z": 32}
    clients = make_clients(ranks, shapes=SHAPES)
    layers = decompose(clients, WEIGHTS, SCALES)
    errors = []
    for name, rank in ranks.items():
        state, error = truncate(layers, rank, SCALES[name])
        assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in clients[name].items()}
        at_once = truncated_svd(clients, WEIGHTS, SCALES, rank, SCALES[name])
        assert all(torch.equal(state[n], at_once.state[n]) for n in state)
        assert error == at_once.error
        errors.append(error.overall)
    assert errors[0] > errors[1] > errors[2] > 0
    whole = dense_mean(clients, WEIGHTS, SCALES)
    same = [dense(truncate(layers, 44, s).state, s) for s in (0.5, 4.0)]
    assert all(torch.allclose(d[layer], whole[layer], atol=1e-4) for d in same for layer in whole)


def test_both_factors_are_balanced_and_the_rows_of_a_are_orthogonal(make_clients):
    state, _ = truncated_svd(make_clients({"x": 4, "y": 8}), {"x": 1, "y": 1}, 2.0, 6, 1.0)
    a, b = state["h.0.v_proj.lora_A.weight"].double(), state["h.0.v_proj.lora_B.weight"].double()
    values = torch.diag(a @ a.T)
    assert torch.allclose(a @ a.T, torch.diag(values), atol=1e-4 * values[0].item())
    assert torch.allclose(b.T @ b, torch.diag(values), atol=1e-4 * values[0].item())
    assert bool((values[:-1] >= values[1:]).all())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 5), st.integers(1, 12))
def test_no_state_of_that_rank_is_nearer(seed, count, each, rank):
    draw = torch.Generator().manual_seed(seed)
    a, b = "v.lora_A.weight", "v.lora_B.weight"
    clients = {
        str(i): {a: torch.randn(each, 9, generator=draw), b: torch.randn(6, each, generator=draw)} for i in range(count)
    }
    weights = dict.fromkeys(clients, 2.0)
    state, error = truncated_svd(clients, weights, 1.0, rank, 1.0)
    whole = sum(s[b].double() @ s[a].double() for s in clients.values()) / count
    values = torch.linalg.svdvals(whole)
    assert error.overall == pytest.approx((values[rank:].norm() / values.norm()).item(), abs=1e-7)
    assert (whole - state[b].double() @ state[a].double()).norm().item() == pytest.approx(
        values[rank:].norm().item(), abs=1e-5 * values[0].item()
    )


def test_it_agrees_with_pefts_svd(micro_qwen, far):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    model = None
    for name, r in {"x": 4, "y": 8}.items():
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(micro_qwen, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    clients = {c: get_peft_model_state_dict(model, adapter_name=c, save_embedding_layers=False) for c in "xy"}
    model.add_weighted_adapter(["x", "y"], [0.75, 0.25], "best", combination_type="svd", svd_rank=5)
    state, _ = truncated_svd(clients, {"x": 3, "y": 1}, 2.0, 5, 1.0)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            assert far(product, layer.get_delta_weight("best").double()) < 1e-4


def test_a_single_client_keeps_its_product(make_state, dense, far):
    state = make_state(4)
    found, error = truncated_svd({"x": state}, {"x": 0.3}, 2.0, 4, 2.0)
    before, after = dense(state), dense(found)
    assert all(far(after[layer], before[layer]) < 1e-6 for layer in before)
    assert error.overall == 0.0


def test_the_gauge_of_the_clients_does_not_matter(make_clients):
    clients = make_clients({"x": 4, "y": 4})
    flipped = {c: {n: -t for n, t in s.items()} for c, s in clients.items()}
    weights = {"x": 1, "y": 2}
    first, second = (truncated_svd(each, weights, 2.0, 4, 2.0).state for each in (clients, flipped))
    assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


def test_the_largest_entry_of_each_row_of_a_is_positive(make_clients):
    state = truncated_svd(make_clients({"x": 4, "y": 8}), {"x": 1, "y": 2}, 2.0, 8, 2.0).state
    for layer in ("h.0.q_proj", "h.0.v_proj"):
        a = state[f"{layer}.lora_A.weight"]
        assert bool((a.gather(1, a.abs().argmax(dim=1, keepdim=True)) > 0).all())


def test_the_order_of_clients_does_not_matter_to_the_last_bit(make_clients):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    first = truncated_svd(clients, WEIGHTS, SCALES, 6, 2.0)
    again = truncated_svd({c: clients[c] for c in "zxy"}, {c: WEIGHTS[c] for c in "yzx"}, SCALES, 6, 2.0)
    assert list(first.state) == list(again.state)
    assert all(torch.equal(first.state[n], again.state[n]) for n in first.state)
    assert first.error == again.error


def test_other_names_for_the_clients_change_rounding_only(make_clients):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    other = {"x": "c", "y": "a", "z": "b"}
    first = truncated_svd(clients, WEIGHTS, SCALES, 6, 2.0).state
    renamed = ({other[c]: v for c, v in m.items()} for m in (clients, WEIGHTS, SCALES))
    second = truncated_svd(*renamed, 6, 2.0).state
    assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


def test_the_sum_of_the_weights_does_not_matter(make_clients):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    few, many = (truncated_svd(clients, {c: f * w for c, w in WEIGHTS.items()}, SCALES, 6, 2.0).state for f in (1, 100))
    assert all(torch.allclose(few[n], many[n], atol=1e-5) for n in few)


def test_a_rank_above_that_of_the_product_is_filled_with_zeros(make_state, dense, far):
    state = make_state(2)
    found, error = truncated_svd({"x": state}, {"x": 1}, 1.0, 5, 1.0)
    assert found["h.0.v_proj.lora_A.weight"].shape == (5, 24)
    assert not found["h.0.v_proj.lora_A.weight"][2:].any()
    assert not found["h.0.v_proj.lora_B.weight"][:, 2:].any()
    assert error.overall == 0.0
    assert all(far(dense(found)[layer], p) < 1e-6 for layer, p in dense(state).items())


def test_spare_rows_fill_what_is_left_over_and_change_nothing(make_state, dense):
    state, spare = make_state(2), make_state(5, seed=9)
    plain = truncated_svd({"x": state}, {"x": 1}, 1.0, 5, 1.0).state
    found = truncated_svd({"x": state}, {"x": 1}, 1.0, 5, 1.0, spare).state
    a, b = "h.0.v_proj.lora_A.weight", "h.0.v_proj.lora_B.weight"
    assert torch.equal(found[a][2:], spare[a][2:])
    assert torch.equal(found[a][:2], plain[a][:2])
    assert torch.equal(found[b], plain[b])
    assert all(torch.equal(p, dense(plain)[layer]) for layer, p in dense(found).items())


def test_spare_rows_can_learn_and_zeros_cannot(make_state):
    zero = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in make_state(3).items()}
    names = "h.0.v_proj.lora_B.weight", "h.0.v_proj.lora_A.weight"
    for spare, learns in ((None, False), (zero, True)):
        state = truncated_svd({"x": zero}, {"x": 1}, 1.0, 3, 1.0, spare).state
        b, a = (state[n].requires_grad_() for n in names)
        (b @ a).sum().backward()
        assert bool(b.grad.any() or a.grad.any()) == learns


def test_zero_updates_give_zeros_without_error(make_clients):
    clients = make_clients({"x": 4, "y": 8})
    for state in clients.values():
        state.update({n: torch.zeros_like(t) for n, t in state.items() if "lora_B" in n})
    found, error = truncated_svd(clients, {"x": 1, "y": 1}, 2.0, 4, 1.0)
    assert not any(t.any() for t in found.values())
    assert error.overall == 0.0


def test_products_that_cancel_give_zeros_and_no_noise(make_state):
    state = make_state(4)
    opposite = {n: -t if "lora_B" in n else t for n, t in state.items()}
    found, error = truncated_svd({"x": state, "y": opposite}, {"x": 1, "y": 1}, 2.0, 4, 1.0)
    assert not any(t.any() for t in found.values())
    assert error.overall == 0.0


def test_wrong_ranks_scales_and_spares_are_refused(make_state):
    layers = decompose({"x": make_state(2)}, {"x": 1})
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        truncate(layers, 0)
    for scale in (0, math.nan):
        with pytest.raises(ValueError, match=f"scale: expected a positive finite number, got {scale}"):
            truncate(layers, 2, scale)
    with pytest.raises(ValueError, match=r"spare, layer h\.0\.q_proj: expected A of shape \(3, 24\), got \(4, 24\)"):
        truncate(layers, 3, spare=make_state(4))
    with pytest.raises(ValueError, match=r"spare, layer h\.0\.q_proj: expected A of shape .*, got none"):
        truncate(layers, 3, spare={})
