import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.krum import clients_needed, krum, multi_krum


def residuals(*values):
    return {f"hr/{i}": {"x": torch.tensor([float(v)])} for i, v in enumerate(values)}


def chosen(updates, f):
    found = krum(updates, dict.fromkeys(updates, 2.0), f=f)
    (client_id,) = found.weights
    assert found.weights[client_id] == 2.0
    assert found.scales == {client_id: 1.0}
    assert sorted([client_id, *found.rejected]) == sorted(updates)
    return client_id


def reference(vectors, f):
    """The definition in words: brute force over differences of vectors."""
    n, scores = len(vectors), []
    for i in range(n):
        distances = sorted(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    return scores


def test_scores_by_hand():
    # n = 5, f = 1: two nearest others. 0: 1 + 9, 1: 1 + 4, 3: 4 + 9 (0 or 6), 6: 9 + 25, 100: 94² + 97²
    updates = residuals(0, 1, 3, 6, 100)
    found = krum(updates, dict.fromkeys(updates, 1.0), f=1)
    assert list(found.weights) == ["hr/1"]
    assert found.rejected == {
        "hr/0": "Krum score 10, the lowest is 5 of hr/1",
        "hr/2": "Krum score 13, the lowest is 5 of hr/1",
        "hr/3": "Krum score 34, the lowest is 5 of hr/1",
        "hr/4": "Krum score 1.82e+04, the lowest is 5 of hr/1",
    }


def test_without_attackers_of_three_the_pair_that_is_nearest_wins_and_the_first_of_it():
    assert chosen(residuals(9, 5, 4), f=0) == "hr/1"  # n − f − 2 = 1 nearest: 16, 1, 1


def test_a_tie_goes_to_the_first_id():
    assert chosen(residuals(4, 3, 2, 1, 0), f=0) == "hr/1"  # three nearest: 14, 6, 6, 6, 14
    assert chosen(residuals(0, 1, 10, 11, 50), f=1) == "hr/1"  # two nearest: 101, 82, 82, 101, 3121
    assert chosen(residuals(*[7] * 5), f=1) == "hr/0"


def test_a_tie_of_equal_updates_goes_to_the_first_id_in_spite_of_rounding():
    draw = torch.Generator().manual_seed(3)
    for _ in range(20):
        same = {"x": torch.randn(997, generator=draw)}
        updates = {f"hr/{i}": {"x": same["x"] + torch.randn(997, generator=draw)} for i in range(9)}
        updates |= {"hr/3": same, "hr/5": same, "hr/8": same}
        assert chosen(updates, f=2) == "hr/3"


def test_colluding_attackers_far_away_are_not_chosen_even_if_they_are_one():
    # n = 7, f = 2: three nearest others; each attacker has one at 0 and two at about 10⁶
    assert chosen(residuals(1000, 1000, 0.1, 0.2, 0.3, 0.4, 0.5), f=2) == "hr/4"


@pytest.mark.parametrize(("n", "f"), [(2, 0), (4, 1), (6, 2), (8, 3)])
def test_too_few_clients_are_refused(n, f):
    assert clients_needed(f) == n + 1
    with pytest.raises(ValueError, match=rf"expected n >= 2 f \+ 3 = {n + 1} clients for f = {f}, got n = {n}"):
        chosen(residuals(*range(n)), f=f)
    chosen(residuals(*range(n + 1)), f=f)


def test_a_negative_number_of_attackers_is_refused():
    with pytest.raises(ValueError, match="f: expected at least 0 malicious clients, got -1"):
        chosen(residuals(1, 2, 3), f=-1)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 4))
def test_it_is_the_brute_force_choice(seed, f, more):
    vectors = np.random.default_rng(seed).normal(size=(2 * f + 3 + more, 6)).astype(np.float32)
    updates = {f"hr/{i:02}": {"x": torch.from_numpy(v)} for i, v in enumerate(vectors)}
    assert chosen(updates, f) == f"hr/{int(np.argmin(reference(vectors.astype(np.float64), f))):02}"


def test_by_default_multi_krum_keeps_all_but_f_with_their_weights():
    # n = 5, f = 1: scores 10, 5, 13, 34, 18245
    updates = residuals(0, 1, 3, 6, 100)
    found = multi_krum(updates, {c: 1.0 + i for i, c in enumerate(updates)}, f=1)
    assert found.weights == {"hr/0": 1.0, "hr/1": 2.0, "hr/2": 3.0, "hr/3": 4.0}
    assert found.scales == dict.fromkeys(found.weights, 1.0)
    assert found.rejected == {"hr/4": "Krum score 1.82e+04, the 4 lowest of 5 are at most 34"}


def test_m_of_them_are_kept():
    updates = residuals(0, 1, 3, 6, 100)
    found = multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=2)
    assert list(found.weights) == ["hr/0", "hr/1"]
    assert found.rejected["hr/2"] == "Krum score 13, the 2 lowest of 5 are at most 10"


def test_one_of_them_is_krum(department):
    for seed in range(10):
        updates = department(seed)
        weights = dict.fromkeys(updates, 1.0)
        assert multi_krum(updates, weights, f=2, m=1).weights == krum(updates, weights, f=2).weights


def test_without_attackers_everybody_is_kept():
    updates = residuals(0, 1, 50)
    assert multi_krum(updates, dict.fromkeys(updates, 3.0), f=0).weights == dict.fromkeys(updates, 3.0)


def test_ties_go_to_the_first_ids():
    updates = residuals(*[7] * 6)
    assert list(multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=3).weights) == ["hr/0", "hr/1", "hr/2"]


@pytest.mark.parametrize("m", [0, -1, 5])
def test_m_out_of_range_is_refused(m):
    updates = residuals(0, 1, 3, 6, 100)
    with pytest.raises(ValueError, match=f"m: expected 1 to n - f = 4 clients, got {m}"):
        multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=m)


@pytest.mark.parametrize("m", [None, 1, 3])
def test_multi_krum_needs_the_same_number_of_clients(m):
    updates = residuals(0, 1, 3, 6)
    with pytest.raises(ValueError, match=r"expected n >= 2 f \+ 3 = 5 clients for f = 1, got n = 4"):
        multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=m)


def test_multi_krum_is_the_brute_force_choice():
    for seed in range(20):
        vectors = np.random.default_rng(seed).normal(size=(9, 5))
        squared = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
        scores = np.sort(squared, axis=1)[:, 1 : 1 + 9 - 2 - 2].sum(axis=1)  # the first is the client itself
        wanted = sorted(f"hr/{i}" for i in np.argsort(scores)[:4])
        updates = {f"hr/{i}": {"x": torch.from_numpy(v)} for i, v in enumerate(vectors)}
        assert list(multi_krum(updates, dict.fromkeys(updates, 1.0), f=2, m=4).weights) == wanted
