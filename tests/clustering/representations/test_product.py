import numpy as np
import pytest
import torch

from fl_lightning.clustering.representations import product

LAYERS = {"q": (7, 5), "v": (3, 6)}  # out_features, in_features


def state(seed, rank=2):
    draw = torch.Generator().manual_seed(seed)
    result = {}
    for layer, (rows, columns) in LAYERS.items():
        result[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=draw, dtype=torch.float64)
        result[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=draw, dtype=torch.float64)
    return result


def dense(adapter):
    """All dense updates B A in one vector."""
    return torch.cat(
        [(adapter[f"{x}.lora_B.weight"] @ adapter[f"{x}.lora_A.weight"]).flatten() for x in LAYERS]
    ).numpy()


def test_it_is_the_cosine_of_the_dense_updates_at_any_ranks():
    states = {f"d{i}": state(i, rank) for i, rank in enumerate([1, 2, 2, 4])}
    x = np.array([dense(adapter) / np.linalg.norm(dense(adapter)) for adapter in states.values()])
    dissimilarity = product.product(states)
    np.testing.assert_allclose(dissimilarity.gram, x @ x.T, atol=1e-12)
    np.testing.assert_allclose(dissimilarity.dissimilarity, 1 - x @ x.T, atol=1e-12)


def test_how_a_product_is_written_does_not_show():
    states = {f"d{i}": state(i) for i in range(3)}
    turn = torch.tensor([[2.0, 1.0], [0.5, -3.0]], dtype=torch.float64)
    written = dict(states)
    written["d1"] = {n: turn @ t if "lora_A" in n else t @ torch.linalg.inv(turn) for n, t in states["d1"].items()}
    np.testing.assert_allclose(product.product(written).gram, product.product(states).gram, atol=1e-12)


def test_a_department_scale_does_not_show():
    states = {f"d{i}": state(i) for i in range(3)}
    scaled = {**states, "d2": {n: 5 * t if "lora_B" in n else t for n, t in states["d2"].items()}}
    np.testing.assert_allclose(product.product(scaled).gram, product.product(states).gram, atol=1e-12)


def test_a_zero_update_is_a_zero_vector_and_told(caplog):
    still = {n: 0 * t if "lora_B" in n else t for n, t in state(0).items()}
    dissimilarity = product.product({"hr": state(1), "it": still})
    np.testing.assert_allclose(dissimilarity.gram, [[1, 0], [0, 0]], atol=1e-12)
    assert "it has a zero product BA" in caplog.text
    assert "hr" not in caplog.text


def test_what_is_no_factor_is_left_alone():
    states = {f"d{i}": {**state(i), "q.bias": torch.ones(3)} for i in range(2)}
    plain = product.product({f"d{i}": state(i) for i in range(2)})
    np.testing.assert_array_equal(product.product(states).gram, plain.gram)


def test_without_b_it_is_refused():
    with pytest.raises(
        ValueError, match="hr: q.lora_A.weight: expected both factors of a product, got no q.lora_B.weight"
    ):
        product.product({"hr": {"q.lora_A.weight": torch.ones(1, 2)}})
    with pytest.raises(ValueError, match="hr: expected lora_A and lora_B"):
        product.product({"hr": {"x": torch.ones(1)}})
    with pytest.raises(ValueError, match="no clients|got none"):
        product.product({})
