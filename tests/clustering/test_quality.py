import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from fl_lightning.clustering.registry import Quality, assess, from_gram

NAMES = list("abcdef")
LABELS = [0, 0, 1, 1, 2, 2]
ASSIGNED = dict(zip(NAMES, LABELS, strict=True))


def relation_of(x):
    return from_gram(NAMES[: len(x)], x @ x.T)


def test_numbers_are_scikit_learns_on_the_vectors_themselves():
    x = np.random.default_rng(0).standard_normal((6, 30)) + np.repeat(np.eye(3), 2, axis=0) @ np.ones((3, 30))
    found = assess(relation_of(x), ASSIGNED)
    assert found.silhouette == pytest.approx(silhouette_score(x, LABELS))
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(x, LABELS))
    assert found.calinski_harabasz == pytest.approx(calinski_harabasz_score(x, LABELS))
    assert found.ari is None


def test_one_cluster_and_loners_have_no_quality():
    x = np.eye(6)
    assert assess(relation_of(x), dict.fromkeys(NAMES, 0)) == Quality(None, None, None, None)
    assert assess(relation_of(x), {n: i for i, n in enumerate(NAMES)}) == Quality(None, None, None, None)


def test_clusters_without_spread_have_no_calinski_harabasz():
    found = assess(relation_of(np.repeat(np.eye(3), 2, axis=0)), ASSIGNED)
    assert found.calinski_harabasz is None
    assert found.silhouette == pytest.approx(1)
    assert found.davies_bouldin == pytest.approx(0, abs=1e-6)


def test_ari_compares_those_whose_group_is_known():
    relation = relation_of(np.random.default_rng(0).standard_normal((6, 3)))
    truth = dict(zip(NAMES, ["x", "x", "y", "y", "z", "z"], strict=True))
    assert assess(relation, ASSIGNED, truth).ari == 1
    assert assess(relation, ASSIGNED, {"a": "x", "b": "x", "c": 1, "zz": 9}).ari == 1
    assert assess(relation, ASSIGNED, {}).ari is None
    # pairs together: {ab, cd} here, {ac, bd} there: none of 6 in both, 2 · 2 / 6 expected: (0 − 2/3) / (2 − 2/3)
    four = {"a": 0, "b": 0, "c": 1, "d": 1}
    assert assess(relation_of(np.eye(4)), four, dict(zip("abcd", "xyxy", strict=True))).ari == pytest.approx(-0.5)


def test_other_departments_are_refused():
    with pytest.raises(ValueError, match="f is not in both relation and assignments"):
        assess(relation_of(np.eye(6)), dict.fromkeys("abcde", 0))
