import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.modeling.lora import collect_lora_state

WEIGHTS = {"x": 3, "y": 1, "z": 4}
SCALES = {"x": 4.0, "y": 2.0, "z": 0.5}


def test_by_hand(two_by_two):
    # ¾·2·(2, 4)ᵀ(1, 0) + ¼·4·(1, 1)ᵀ(0, 3) = [[3, 0], [6, 0]] + [[0, 3], [0, 3]]
    clients = {"x": two_by_two([[2.0], [4.0]], [[1.0, 0.0]]), "y": two_by_two([[1.0], [1.0]], [[0.0, 3.0]])}
    state = stack_factors(clients, {"x": 3, "y": 1}, {"x": 2.0, "y": 4.0})
    assert state["q.lora_A.weight"].tolist() == [[1.0, 0.0], [0.0, 3.0]]
    assert state["q.lora_B.weight"].tolist() == [[3.0, 1.0], [6.0, 1.0]]
    assert (state["q.lora_B.weight"] @ state["q.lora_A.weight"]).tolist() == [[3.0, 3.0], [6.0, 3.0]]


@pytest.mark.parametrize("shapes", [{"q": (24, 24), "v": (8, 24)}, {"embed": (5, 90)}])
def test_mixed_ranks_give_the_exact_mean_product(make_clients, dense, dense_mean, far, shapes):
    clients = make_clients({"x": 4, "y": 8, "z": 32}, shapes=shapes)
    state = stack_factors(clients, WEIGHTS, SCALES)
    wanted = dense_mean(clients, WEIGHTS, SCALES)
    for layer, product in dense(state).items():
        assert far(product, wanted[layer]) < 1e-6
    assert all(44 in tensor.shape for tensor in state.values())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9999), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0.01, 100))
def test_any_ranks_and_weights(seed, ranks, factor):
    draw = torch.Generator().manual_seed(seed)
    clients = {
        str(i): {
            "q.lora_A.weight": torch.randn(r, 5, generator=draw),
            "q.lora_B.weight": torch.randn(3, r, generator=draw),
        }
        for i, r in enumerate(ranks)
    }
    weights = {c: factor * (1 + int(c)) for c in clients}
    state = stack_factors(clients, weights, 2.0)
    products = [
        (1 + int(c)) * 2.0 * s["q.lora_B.weight"].double() @ s["q.lora_A.weight"].double() for c, s in clients.items()
    ]
    wanted = sum(products) / sum(1 + i for i in range(len(ranks)))
    size = sum(p.norm().item() for p in products)
    found = state["q.lora_B.weight"].double() @ state["q.lora_A.weight"].double()
    assert (found - wanted).norm().item() <= 1e-6 * size


@pytest.mark.parametrize(
    ("kind", "targets"), [("qwen", ["q_proj", "v_proj", "down_proj"]), ("gpt2", ["c_attn", "c_fc"])]
)
@pytest.mark.parametrize("rslora", [False, True])
def test_it_agrees_with_pefts_concatenation(micro_model, far, kind, targets, rslora):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    ranks = {"x": (4, 16), "y": (8, 16), "z": (32, 8)}
    model = None
    for name, (r, alpha) in ranks.items():
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,
            use_rslora=rslora,
            target_modules=targets,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        if model is None:
            model = get_peft_model(micro_model(kind), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    clients = {c: get_peft_model_state_dict(model, adapter_name=c, save_embedding_layers=False) for c in ranks}
    scales = {c: alpha / (r**0.5 if rslora else r) for c, (r, alpha) in ranks.items()}
    model.add_weighted_adapter(list(ranks), [WEIGHTS[c] / 8 for c in ranks], "all", combination_type="cat")
    state = stack_factors(clients, WEIGHTS, scales)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == len(state) // 2
    assert any(m.in_features != m.out_features for m in layers.values())
    for name, layer in layers.items():
        product = state[f"{name}.lora_B.weight"].double() @ state[f"{name}.lora_A.weight"].double()
        # PEFT gives the new adapter lora_alpha = r but leaves rsLoRA on, and so scales by sqrt(44) what needs no scale
        assert layer.scaling["all"] == pytest.approx(44**0.5 if rslora else 1.0)
        wanted = layer.get_delta_weight("all").double() / layer.scaling["all"]
        assert far(product.T if layer.fan_in_fan_out else product, wanted) < 1e-5


def test_an_embeddings_product_is_the_change_of_the_transposed_weight(micro_qwen, far):
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(micro_qwen, config)
    state = stack_factors({"x": collect_lora_state(model)}, {"x": 1}, 2.0)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer))
    product = state[f"{name}.lora_embedding_B"].double() @ state[f"{name}.lora_embedding_A"].double()
    assert far(product.T, layer.get_delta_weight("default").double()) < 1e-6
    assert product.T.shape == layer.weight.shape == (4096, 32)


def test_a_single_client_keeps_its_factors(make_state):
    state = make_state(4)
    stacked = stack_factors({"x": state}, {"x": 0.3}, 1.0)
    assert all(torch.equal(stacked[n], state[n]) for n in state)


def test_the_sum_of_the_weights_does_not_matter(make_clients):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    few, many = (stack_factors(clients, {c: f * w for c, w in WEIGHTS.items()}, SCALES) for f in (1, 100))
    assert all(torch.allclose(few[n], many[n], rtol=1e-6, atol=0) for n in few)


def test_the_order_of_clients_does_not_matter_to_the_last_bit(make_clients):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    first = stack_factors(clients, WEIGHTS, SCALES)
    again = stack_factors({c: clients[c] for c in "zxy"}, {c: WEIGHTS[c] for c in "yzx"}, {c: SCALES[c] for c in "zyx"})
    assert list(first) == list(again)
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_other_names_for_the_clients_change_the_order_of_blocks_only(make_clients, dense, far):
    clients = make_clients({"x": 4, "y": 8, "z": 2})
    other = {"x": "c", "y": "a", "z": "b"}
    first = dense(stack_factors(clients, WEIGHTS, SCALES))
    second = dense(stack_factors(*({other[c]: v for c, v in m.items()} for m in (clients, WEIGHTS, SCALES))))
    assert all(far(second[layer], first[layer]) < 1e-6 for layer in first)


def test_zero_updates_stay_zero(make_clients, dense):
    clients = make_clients({"x": 4, "y": 8})
    for state in clients.values():
        state.update({n: torch.zeros_like(t) for n, t in state.items() if "lora_B" in n})
    assert not any(p.any() for p in dense(stack_factors(clients, {"x": 1, "y": 1})).values())


def test_inputs_are_left_alone(make_clients):
    clients = make_clients({"x": 4, "y": 8})
    copies = {c: {n: t.clone() for n, t in s.items()} for c, s in clients.items()}
    stack_factors(clients, {"x": 1, "y": 1}, 3.0)
    assert all(torch.equal(t, copies[c][n]) for c, s in clients.items() for n, t in s.items())


def test_bf16_clients_are_taken_in_full_precision(make_clients, dense, dense_mean, far):
    clients = {c: {n: t.bfloat16() for n, t in s.items()} for c, s in make_clients({"x": 4, "y": 8}).items()}
    found, wanted = dense(stack_factors(clients, {"x": 1, "y": 2})), dense_mean(clients, {"x": 1, "y": 2})
    assert all(far(found[layer], wanted[layer]) < 1e-6 for layer in wanted)


def test_shapes_that_differ_are_refused(make_state):
    clients = {"x": make_state(2), "y": make_state(2, shapes={"h.0.q_proj": (24, 24), "h.0.v_proj": (24, 24)})}
    with pytest.raises(
        ValueError,
        match=r"client y, layer h\.0\.v_proj: expected \(out, in\) \(8, 24\) as for client x, got \(24, 24\)",
    ):
        stack_factors(clients, {"x": 1, "y": 1})
