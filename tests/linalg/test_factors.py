import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.linalg.factors import (
    FactorNames,
    Product,
    client_scales,
    common_scaling,
    gather,
    inner,
    normalized_weights,
    pair_names,
    product_norm,
    svd,
)
from fl_lightning.state import num_bytes, select

T = torch.ones(1, 1)


def draw(seed, rows, rank, columns):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return Product(up, torch.randn(rank, columns, generator=generator, dtype=torch.float64))


def test_pairs_are_found_by_name_for_linear_layers_and_embeddings():
    state = {
        "m.q.lora_B.weight": T,
        "m.q.lora_A.weight": T,
        "m.embed.lora_embedding_B": T,
        "m.embed.lora_embedding_A": T,
    }
    assert pair_names(state) == {
        "m.embed": FactorNames("m.embed.lora_embedding_A", "m.embed.lora_embedding_B"),
        "m.q": FactorNames("m.q.lora_A.weight", "m.q.lora_B.weight"),
    }


def test_a_module_whose_own_name_speaks_of_lora_is_no_trouble():
    names = ["lora_net.lora_A.q.lora_A.weight", "lora_net.lora_A.q.lora_B.weight"]
    assert pair_names(dict.fromkeys(names, T)) == {"lora_net.lora_A.q": FactorNames(*names)}


def test_bare_names_make_the_layer_without_a_name():
    assert pair_names({"lora_A": T, "lora_B": T}) == {"": FactorNames("lora_A", "lora_B")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["q.lora_A.weight"], r"q\.lora_A\.weight: expected both factors of a product, got no q\.lora_B\.weight"),
        (["q.lora_B.weight"], r"q\.lora_B\.weight: expected both factors of a product, got no q\.lora_A\.weight"),
        (
            ["q.lora_A.weight", "q.lora_B.bias"],
            r"q\.lora_A\.weight: expected both factors of a product, got no q\.lora_B\.weight",
        ),
        (["q.lora_A.weight", "q.lora_B.weight", "q.lora_B.bias"], r"q\.lora_B\.bias: expected names of LoRA factors"),
        (
            ["q.lora_A.weight", "q.lora_B.weight", "q.lora_magnitude_vector"],
            r"magnitude_vector: expected names of LoRA factors",
        ),
        (
            ["q.lora_A.x", "q.lora_B.x", "q.lora_A.y", "q.lora_B.y"],
            r"q\.lora_A\.y: expected one pair of factors for its layer, got two",
        ),
        (["q.lora_A\n\x1b", "x"], r"q\.lora_A\\n\\x1b: expected both factors of a product, got no"),
        (["lora_Alora_C"], r"lora_Alora_C: expected both factors of a product, got no"),
    ],
)
def test_names_that_are_no_pairs_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        pair_names(dict.fromkeys(names, T))


def test_inner_product_by_hand():
    # B₁A₁ = [[1, 2], [0, 0]], B₂A₂ = [[3, 3], [5, 5]]: 1·3 + 2·3 = 9
    first = Product(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 2.0]]))
    second = Product(torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0, 1.0]]))
    assert inner(first, second) == 9.0
    assert inner(first, first) == 5.0
    assert product_norm(second) == pytest.approx(math.sqrt(68))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9999), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_inner_product_is_that_of_the_dense_matrices(seed, first_rank, second_rank, rows, columns):
    first, second = draw(seed, rows, first_rank, columns), draw(seed + 1, rows, second_rank, columns)
    wanted = ((first.up @ first.down) * (second.up @ second.down)).sum().item()
    size = product_norm(first) * product_norm(second)
    assert inner(first, second) == pytest.approx(wanted, abs=1e-12 * size)
    assert product_norm(first) == pytest.approx((first.up @ first.down).norm().item(), rel=1e-7)


def test_the_norm_does_not_depend_on_the_gauge():
    up, down = draw(0, 9, 4, 7)
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3 * torch.eye(4)
    assert product_norm(Product(up @ torch.linalg.inv(turn), turn @ down)) == pytest.approx(
        product_norm(Product(up, down)), rel=1e-10
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 10), st.integers(1, 10))
def test_spectrum_is_the_dense_svd_without_its_zeros(seed, rank, rows, columns):
    product = draw(seed, rows, rank, columns)
    left, values, right = svd(product)
    dense = product.up @ product.down
    assert len(values) <= min(rank, rows, columns)
    wanted = torch.linalg.svdvals(dense)[: len(values)]
    assert torch.allclose(values, wanted, rtol=0, atol=1e-10 * wanted[0].item())
    assert torch.allclose(left * values @ right, dense, rtol=0, atol=1e-10 * wanted[0].item())
    assert torch.allclose(left.T @ left, torch.eye(len(values), dtype=torch.float64), atol=1e-10)
    assert torch.allclose(right @ right.T, torch.eye(len(values), dtype=torch.float64), atol=1e-10)
    assert bool((right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all())


def test_signs_do_not_depend_on_those_of_the_factors():
    up, down = draw(3, 8, 4, 6)
    first, second = svd(Product(up, down)), svd(Product(-up, -down))
    assert torch.allclose(first.right, second.right, atol=1e-10)
    assert torch.allclose(first.left, second.left, atol=1e-10)


@pytest.mark.parametrize("sizes", [(8, 4, 6), (300, 2, 500), (5, 40, 6)])
def test_a_product_that_cancels_has_rank_zero(sizes):
    up, down = draw(5, *sizes)
    none = svd(Product(torch.cat([up, -up], dim=1), torch.cat([down, down])))
    assert [tuple(t.shape) for t in none] == [(sizes[0], 0), (0,), (0, sizes[2])]


def test_a_product_of_zeros_has_rank_zero():
    assert len(svd(Product(torch.zeros(5, 2), torch.ones(2, 4))).values) == 0


def test_small_but_real_directions_are_kept():
    # A direction 1e-9 as long as the first is no rounding in fp64.
    values = svd(Product(torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64)), torch.eye(2))).values
    assert values.tolist() == pytest.approx([1.0, 1e-9], rel=1e-6)


def test_nothing_as_large_as_the_dense_matrix_is_made():
    # Dense, 200,000 × 200,000 fp64 would take 320 GB.
    product = draw(0, 200_000, 2, 200_000)
    assert product_norm(product) > 0
    assert svd(product).left.shape == (200_000, 2)


def test_weights_are_normalised_in_sorted_order():
    assert normalized_weights({"b": 0, "a": 0}, {"b": 3, "a": 1}) == {"a": 0.25, "b": 0.75}
    assert list(normalized_weights({"b": 0, "a": 0}, {"b": 3, "a": 1})) == ["a", "b"]


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_weights_that_are_not_positive_are_refused(weight):
    with pytest.raises(ValueError, match=f"client a: expected a positive finite weight, got {weight}"):
        normalized_weights({"a": 0}, {"a": weight})


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_scales_that_are_not_positive_are_refused(scale):
    with pytest.raises(ValueError, match=f"client a: expected a positive finite scale, got {scale}"):
        client_scales({"a": 0}, scale)


def test_weights_and_scales_are_those_of_the_clients():
    with pytest.raises(ValueError, match="clients to combine: expected at least one"):
        normalized_weights({}, {})
    with pytest.raises(ValueError, match="client b: expected one in weights, got none"):
        normalized_weights({"a": 0, "b": 0}, {"a": 1})
    with pytest.raises(ValueError, match="client c: expected none in weights, got one, but no state"):
        normalized_weights({"a": 0}, {"a": 1, "c": 1})
    with pytest.raises(ValueError, match="client b: expected one in scales, got none"):
        client_scales({"a": 0, "b": 0}, {"a": 1.0})


def test_one_scale_names_the_client_that_differs():
    assert common_scaling({"a": 0, "b": 0}, {"a": 2, "b": 2.0}) == 2.0
    with pytest.raises(ValueError, match=r"client b: expected scale 2\.0 as for client a, got 4\.0"):
        common_scaling({"a": 0, "b": 0}, {"a": 2.0, "b": 4.0})


def test_layers_that_differ_are_refused(make_state):
    first, second = make_state(2), make_state(2, shapes={"h.0.q_proj": (24, 24)})
    with pytest.raises(
        ValueError,
        match=r"client b, layer h\.0\.v_proj: expected h\.0\.v_proj\.lora_A\.weight and .*as for client a, got none",
    ):
        gather({"b": second, "a": first}, {"a": 1, "b": 1})


def test_a_client_that_sends_only_a_is_refused(make_state):
    with pytest.raises(
        ValueError,
        match=r"client b: h\.0\.q_proj\.lora_A\.weight: expected both factors of a product, got no h\.0.*lora_B",
    ):
        gather({"a": make_state(2), "b": select(make_state(2), "a")}, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("b", "a", "message"),
    [
        ((9, 2), (2, 6), r"client y, layer q: expected \(out, in\) \(5, 6\) as for client x, got \(9, 6\)"),
        ((5, 2), (2, 7), r"client y, layer q: expected \(out, in\) \(5, 6\) as for client x, got \(5, 7\)"),
        (
            (5, 2),
            (3, 6),
            r"client y, layer q: expected B of shape \(out, r\) and A of shape \(r, in\), got \(5, 2\) and \(3, 6\)",
        ),
        ((5, 2, 1, 1), (2, 6, 3, 3), r"client y, layer q: expected .*, got \(5, 2, 1, 1\)"),
    ],
)
def test_shapes_that_differ_are_refused(two_by_two, b, a, message):
    def state(b, a):
        return {"q.lora_A.weight": torch.ones(a), "q.lora_B.weight": torch.ones(b)}

    department = gather({"x": state((5, 4), (4, 6)), "y": state(b, a)}, {"x": 1, "y": 1})
    with pytest.raises(ValueError, match=message):
        department.factors("q")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(make_state, value):
    state = make_state(2)
    state["h.0.v_proj.lora_B.weight"][3, 1] = value
    department = gather({"x": state}, {"x": 1})
    with pytest.raises(ValueError, match=r"client x, layer h\.0\.v_proj: .*not finite"):
        department.factors("h.0.v_proj")


def test_each_tensor_is_read_once(make_state):
    class Counting(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            return super().__getitem__(name)

    state = Counting(make_state(2))
    department = gather({"x": state}, {"x": 1})
    assert state.reads == 0
    department.factors("h.0.v_proj")
    assert state.reads == 2


def test_bytes_of_a_alone_are_more_than_half_with_grouped_queries(make_state):
    # SmolLM2-135M: width 576, 9 query heads and 3 key/value heads of 64. A: r · in; B: r · out.
    state = make_state(8, shapes={"q_proj": (576, 576), "v_proj": (192, 576)})
    assert num_bytes(select(state, "a")) == 4 * 8 * (576 + 576)
    assert num_bytes(state) == 4 * 8 * ((576 + 576) + (192 + 576))
    assert num_bytes(select(state, "a")) / num_bytes(state) == 0.6
    assert num_bytes(select({n: t for n, t in state.items() if "v_proj" in n}, "a")) == 4 * 8 * 576  # 3 / 4 of v
