import numpy as np
import pytest
import torch

from fl_lightning.clustering.representations import factors
from fl_lightning.clustering.representations.vectors import cosine_similarity, represent

A, A2, B = "q.lora_A.weight", "v.lora_A.weight", "q.lora_B.weight"


def random_states(n=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    start = {A: torch.randn(2, 8, generator=draw), A2: torch.randn(3, 5, generator=draw)}
    return start, {
        f"d{i}": {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in start.items()} for i in range(n)
    }


def test_raw_is_the_euclidean_distance_of_a():
    _, states = random_states()
    x = represent(states, "raw")
    wanted = np.linalg.norm(x[:, None] - x[None, :], axis=2)
    np.testing.assert_allclose(factors.raw(states).distance, wanted, rtol=1e-6)
    np.testing.assert_allclose(factors.raw(states).gram, x @ x.T, rtol=1e-6)


def test_delta_is_the_cosine_of_moves():
    start, states = random_states()
    x = represent(states, "delta", start)
    relation = factors.delta(states, reference=start)
    np.testing.assert_allclose(relation.gram, cosine_similarity(x @ x.T), atol=1e-6)
    np.testing.assert_allclose(relation.dissimilarity, 1 - x @ x.T, atol=1e-6)


def test_b_does_not_count():
    start, states = random_states()
    with_b = {name: {**state, B: torch.randn(4, 2)} for name, state in states.items()}
    np.testing.assert_array_equal(
        factors.delta(with_b, reference={**start, B: torch.zeros(4, 2)}).gram,
        factors.delta(states, reference=start).gram,
    )


def test_who_has_not_moved_is_a_zero_vector():
    start, states = random_states(2)
    relation = factors.delta({**states, "still": start}, reference=start)
    np.testing.assert_allclose(relation.gram[2], 0, atol=1e-12)
    np.testing.assert_allclose(relation.dissimilarity[2], [0.5, 0.5, 0.0], atol=1e-6)


def test_mixed_ranks_are_refused_with_a_hint():
    states = {"hr": {A: torch.ones(2, 4)}, "it": {A: torch.ones(3, 4)}}
    with pytest.raises(ValueError, match=r"raw compares .* shape \(3, 4\), wanted \(2, 4\); ranks may differ under"):
        factors.raw(states)


def test_states_without_a_are_refused():
    with pytest.raises(ValueError, match="hr: got no lora_A among its tensors"):
        factors.raw({"hr": {B: torch.ones(2, 2)}})
    with pytest.raises(ValueError, match="states: got none"):
        factors.raw({})
    with pytest.raises(ValueError, match="v.lora_A.weight is not in the states of both hr and it"):
        factors.raw({"hr": {A: torch.ones(1, 2)}, "it": {A: torch.ones(1, 2), A2: torch.ones(1, 2)}})


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        factors.raw({"hr": {A: torch.tensor([[float("nan")]])}, "it": {A: torch.ones(1, 1)}})
