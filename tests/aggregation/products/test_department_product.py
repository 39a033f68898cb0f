"""Departments that keep products, against dense matrices."""

import math

import pytest
import torch

from fl_lightning.aggregation.products.client_start import ClientStarts
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS, combine_products
from fl_lightning.federation.state import FederationState
from fl_lightning.state import is_lora_b

SHAPES = {"q": (24, 24), "v": (8, 24)}
GAINS = {"hr/phone": 2.0, "hr/laptop": 1.0, "hr/server": 0.25}
RANKS = {"hr/phone": 4, "hr/laptop": 8, "hr/server": 32}
WEIGHTS = {"hr/phone": 3, "hr/laptop": 1, "hr/server": 4}


def dense(state, scale=1.0):
    layers = sorted({name.split(".lora_")[0] for name in state})
    return {k: scale * state[f"{k}.lora_B.weight"].double() @ state[f"{k}.lora_A.weight"].double() for k in layers}


def make_state(rank, seed):
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (rows, columns) in SHAPES.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=draw)
    return state


def make_initial(rank=8):
    state = make_state(rank, 99)
    return {n: torch.zeros_like(t) if is_lora_b(n) else t for n, t in state.items()}


def mixed(seed=0):
    return {client: make_state(rank, seed + rank) for client, rank in RANKS.items()}


def mean_product(updates, weights, relative_scalings):
    total = sum(weights.values())
    products = {c: dense(state, relative_scalings[c] * weights[c] / total) for c, state in updates.items()}
    return {layer: sum(product[layer] for product in products.values()) for layer in SHAPES}


def close(found, wanted, tolerance=1e-6):
    return all((found[k] - wanted[k]).norm() <= tolerance * wanted[k].norm() for k in wanted)


def test_stack_adds_the_exact_mean_of_mixed_ranks_to_what_is_known():
    initial, known = make_initial(), make_state(3, 5)
    found = combine_products("stack", initial, known, mixed(), WEIGHTS, GAINS)
    wanted = mean_product(mixed(), WEIGHTS, GAINS)
    assert close(dense(found.product), {k: wanted[k] + dense(known)[k] for k in wanted})
    assert all(torch.equal(found.factors[n], t) for n, t in initial.items())
    assert not found.rank_errors


def test_svd_takes_the_exact_mean_in_place_of_what_was_known():
    found = combine_products("svd", make_initial(), make_state(3, 5), mixed(), WEIGHTS, GAINS)
    wanted = mean_product(mixed(), WEIGHTS, GAINS)
    assert close(dense(found.product), wanted)
    for client, rank in RANKS.items():
        tails = [torch.linalg.svdvals(wanted[k])[rank:].norm().item() for k in SHAPES]
        whole = math.hypot(*(wanted[k].norm().item() for k in SHAPES))
        assert found.rank_errors[client] == pytest.approx(math.hypot(*tails) / whole, abs=1e-9)
    assert found.rank_errors["hr/phone"] > found.rank_errors["hr/laptop"] > found.rank_errors["hr/server"] >= 0


def test_residual_keeps_the_mean_of_the_factors_and_the_rest_beside_them():
    updates = {client: make_state(8, i) for i, client in enumerate(RANKS)}
    same, known = dict.fromkeys(RANKS, 1.0), make_state(3, 5)
    found = combine_products("residual", make_initial(), known, updates, WEIGHTS, same)
    total, wanted = sum(WEIGHTS.values()), mean_product(updates, WEIGHTS, same)
    for name, tensor in found.factors.items():
        mean = sum(WEIGHTS[c] / total * updates[c][name] for c in updates)
        assert torch.allclose(tensor, mean, atol=1e-6)
    whole = {k: dense(found.factors)[k] + dense(found.product)[k] for k in wanted}
    assert close(whole, {k: wanted[k] + dense(known)[k] for k in wanted})


def test_residual_refuses_mixed_ranks():
    with pytest.raises(ValueError, match="averaged factors need one rank"):
        combine_products("residual", make_initial(), {}, mixed(), WEIGHTS, dict.fromkeys(RANKS, 1.0))


def begin(product=None):
    state = FederationState.begin(make_initial(), ["hr", "it"])
    if product is not None:
        state.products["hr"] = product
    return state


def test_stack_starts_everybody_from_one_draw_of_the_round_with_nothing_learnt():
    first, known = {}, make_state(3, 5)
    for client, rank in RANKS.items():
        start, frozen = ClientStarts("stack", begin(known), 2, 7).of(client, rank, GAINS[client])
        assert frozen is not None
        assert all(torch.equal(frozen[n], t) for n, t in known.items())
        assert not any(t.any() for n, t in start.items() if is_lora_b(n))
        first[client] = start
        assert start["q.lora_A.weight"].shape == (rank, 24)
        assert start["v.lora_B.weight"].shape == (8, rank)
    assert torch.equal(first["hr/phone"]["q.lora_A.weight"], first["hr/server"]["q.lora_A.weight"][:4])
    other, frozen = ClientStarts("stack", begin(known), 3, 7).of("hr/phone", 4)
    assert not torch.equal(other["q.lora_A.weight"], first["hr/phone"]["q.lora_A.weight"])
    assert ClientStarts("stack", begin(known), 2, 7).of("it/a", 4)[1] == {}


@pytest.mark.parametrize("combiner", ["stack", "svd"])
def test_the_first_round_starts_from_the_shared_a_as_far_as_it_goes(combiner):
    initial = make_initial()
    starts = ClientStarts(combiner, begin(), 1, 7)
    small, large = starts.of("hr/phone", 4)[0], starts.of("hr/server", 32)[0]
    assert torch.equal(small["q.lora_A.weight"], initial["q.lora_A.weight"][:4])
    assert torch.equal(large["q.lora_A.weight"][:8], initial["q.lora_A.weight"])
    rest = large["q.lora_A.weight"][8:]
    assert rest.abs().max() <= 1 / math.sqrt(24)
    assert rest.std() == pytest.approx(1 / math.sqrt(3 * 24), rel=0.1)


def test_svd_starts_each_client_from_the_best_product_of_its_rank_at_its_scale():
    product = combine_products("svd", make_initial(), {}, mixed(), WEIGHTS, GAINS).product
    wanted = mean_product(mixed(), WEIGHTS, GAINS)
    starts = ClientStarts("svd", begin(product), 2, 7)
    for client, rank in RANKS.items():
        start, frozen = starts.of(client, rank, GAINS[client])
        assert frozen == {}
        assert start["q.lora_A.weight"].shape == (rank, 24)
        for layer, matrix in dense(start, GAINS[client]).items():
            left, values, right = torch.linalg.svd(wanted[layer], full_matrices=False)
            assert torch.allclose(matrix, left[:, :rank] * values[:rank] @ right[:rank], atol=1e-4)


def test_svd_fills_a_rank_that_the_product_does_not_have_with_rows_that_can_learn():
    product = combine_products(
        "svd", make_initial(), {}, {"hr/phone": make_state(4, 1)}, {"hr/phone": 1}, {"hr/phone": 1.0}
    )
    start, _ = ClientStarts("svd", begin(product.product), 2, 7).of("hr/laptop", 8)
    assert torch.equal(start["q.lora_A.weight"][4:], make_initial()["q.lora_A.weight"][4:])
    assert not start["q.lora_B.weight"][:, 4:].any()


@pytest.mark.parametrize("combiner", ["flora", "fedavg", "residual"])
def test_the_others_start_from_the_department(combiner):
    state = begin(make_state(3, 5) if combiner == "residual" else None)
    start, frozen = ClientStarts(combiner, state, 2, 7).of("hr/phone", 8)
    assert all(torch.equal(start[n], t) for n, t in state.departments["hr"].items())
    assert bool(frozen) == (combiner == "residual")


def test_clients_alike_share_one_start():
    starts = ClientStarts("svd", begin(make_state(3, 5)), 2, 7)
    assert starts.of("hr/a", 4, 2.0)[0] is starts.of("hr/b", 4, 2.0)[0]
    assert starts.of("hr/a", 4, 2.0)[0] is not starts.of("hr/b", 4, 1.0)[0]
    assert starts.of("it/a", 4)[0] is not starts.of("hr/a", 4)[0]


def test_what_a_department_knows_is_its_factors_and_its_product():
    state = begin(make_state(3, 5))
    assert close(dense(state.adapter("hr")), dense(state.products["hr"]))
    assert state.adapter("it") == state.departments["it"]
    assert KEEP_PRODUCTS == ("stack", "residual", "svd")
