import math

import pytest
import torch

from fl_lightning.linalg.adapter_algebra import (
    add_products,
    concatenate_adapters,
    from_svd_form,
    pad_to_common_rank,
    product_distance,
    resize_like,
    to_svd_form,
)
from fl_lightning.linalg.truncation import decompose, truncate
from fl_lightning.state import problem_with

SHAPES = {"q": (24, 24), "v": (8, 24)}


def ranks(state):
    return {n.split(".lora")[0]: t.shape[0] for n, t in state.items() if "lora_A" in n}


def test_side_by_side_holds_the_scaled_sum_of_the_products(make_state, dense, far):
    first, second = make_state(3, 1, SHAPES), make_state(5, 2, SHAPES)
    joined = concatenate_adapters([first, second], [0.5, 3.0])
    assert set(ranks(joined).values()) == {8}
    for layer in SHAPES:
        wanted = 0.5 * dense(first)[layer] + 3.0 * dense(second)[layer]
        assert far(dense(joined)[layer], wanted) < 1e-6


def test_one_state_of_scale_one_keeps_its_bits(make_state):
    state = make_state(3)
    assert all(concatenate_adapters([state], [1.0])[n] is t for n, t in state.items())


def test_it_agrees_with_pefts_cat(micro_qwen, far):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    model = None
    for name, r in {"x": 4, "y": 8}.items():
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(micro_qwen, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    states = [get_peft_model_state_dict(model, adapter_name=c, save_embedding_layers=False) for c in "xy"]
    model.add_weighted_adapter(["x", "y"], [0.75, 0.25], "both", combination_type="cat")
    joined = concatenate_adapters(states, [0.75 * 2.0, 0.25 * 2.0])
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            product = joined[f"{name}.lora_B.weight"] @ joined[f"{name}.lora_A.weight"]
            assert far(product, layer.get_delta_weight("both").double()) < 1e-5


def test_a_sum_of_products_is_exact_at_no_higher_rank_than_it_has(make_state, dense, far):
    first, second = make_state(3, 1, SHAPES), make_state(7, 2, SHAPES)
    total = add_products([first, second, first])
    assert ranks(total) == {"q": 10, "v": 8}
    for layer in SHAPES:
        assert far(dense(total)[layer], 2 * dense(first)[layer] + dense(second)[layer]) < 1e-6
    again = total
    for _ in range(20):
        again = add_products([again, {n: torch.zeros_like(t) for n, t in first.items()}])
    assert all(far(dense(again)[layer], dense(total)[layer]) < 1e-5 for layer in SHAPES)


def test_what_cancels_has_rank_zero_and_can_be_added_to(make_state, dense, far):
    state = make_state(3, 1, SHAPES)
    gone = add_products([state, {n: -t if "lora_B" in n else t for n, t in state.items()}])
    assert set(ranks(gone).values()) == {0}
    assert all(far(dense(add_products([gone, state]))[layer], dense(state)[layer]) < 1e-6 for layer in SHAPES)


def test_every_rank_can_be_read_off_the_singular_vectors(make_clients):
    clients = make_clients({"x": 4, "y": 8}, shapes=SHAPES)
    layers = decompose(clients, {"x": 1, "y": 3}, 2.0)
    back = from_svd_form(to_svd_form(layers))
    for rank in (1, 4, 12):
        first, second = truncate(layers, rank, 2.0), truncate(back, rank, 2.0)
        assert all(torch.allclose(first.state[n], second.state[n], atol=1e-5) for n in first.state)
        assert second.error.overall == pytest.approx(first.error.overall, abs=1e-6)


def test_distance_is_that_of_the_dense_products(make_state, dense):
    first, second = make_state(3, 1, SHAPES), make_state(5, 2, SHAPES)
    wanted = math.hypot(*((dense(first)[layer] - dense(second)[layer]).norm().item() for layer in SHAPES))
    assert product_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    assert product_distance(first, first) == pytest.approx(0, abs=1e-5)


def test_one_rank_for_all_layers_changes_no_product(make_state, dense):
    ragged = {**make_state(3, 1, {"q": (24, 24)}), **make_state(5, 2, {"v": (8, 24)})}
    padded = pad_to_common_rank(ragged)
    assert set(ranks(padded).values()) == {5}
    assert all(torch.equal(dense(padded)[layer], dense(ragged)[layer]) for layer in SHAPES)


def test_a_state_of_other_layers_or_with_factors_that_do_not_fit_shows(make_state):
    like = make_state(8, 0, SHAPES)
    good = make_state(3, 1, SHAPES)
    assert problem_with(good, resize_like(good, like)) is None
    for name, spoilt in (
        ("q.lora_B.weight", torch.ones(24, 4)),
        ("q.lora_A.weight", torch.ones(3, 5)),
        ("v.lora_A.weight", torch.ones(())),
    ):
        bad = {**good, name: spoilt}
        assert "shape" in problem_with(bad, resize_like(bad, like))
    missing = {n: t for n, t in good.items() if n != "v.lora_A.weight"}
    assert "missing" in problem_with(missing, resize_like(missing, like))
