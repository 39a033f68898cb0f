import numpy as np
import pytest
import torch

from fl_lightning.aggregation.robust.krum import krum
from fl_lightning.aggregation.robust.multi_krum import multi_krum


def residuals(*values):
    return {f"hr/{i}": {"x": torch.tensor([float(v)])} for i, v in enumerate(values)}


def test_by_default_all_but_f_are_kept_with_their_weights():
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
    with pytest.raises(ValueError, match=f"m: got {m}, wanted 1 to n - f = 4 clients"):
        multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=m)


@pytest.mark.parametrize("m", [None, 1, 3])
def test_too_few_clients_are_refused(m):
    updates = residuals(0, 1, 3, 6)
    with pytest.raises(ValueError, match=r"got n = 4 clients and f = 1, wanted n >= 2 f \+ 3 = 5"):
        multi_krum(updates, dict.fromkeys(updates, 1.0), f=1, m=m)


def test_it_is_the_brute_force_choice():
    for seed in range(20):
        vectors = np.random.default_rng(seed).normal(size=(9, 5))
        squared = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
        scores = np.sort(squared, axis=1)[:, 1 : 1 + 9 - 2 - 2].sum(axis=1)  # the first is the client itself
        wanted = sorted(f"hr/{i}" for i in np.argsort(scores)[:4])
        updates = {f"hr/{i}": {"x": torch.from_numpy(v)} for i, v in enumerate(vectors)}
        assert list(multi_krum(updates, dict.fromkeys(updates, 1.0), f=2, m=4).weights) == wanted
