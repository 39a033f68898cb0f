import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.quality import assess

NAMES = list("abcdef")
LABELS = [0, 0, 1, 1, 2, 2]
ASSIGNED = dict(zip(NAMES, LABELS, strict=True))


def dissimilarity_of(x):
    return from_gram(NAMES[: len(x)], x @ x.T)


def test_numbers_are_scikit_learns_on_the_vectors_themselves():
    x = np.random.default_rng(0).standard_normal((6, 30)) + np.repeat(np.eye(3), 2, axis=0) @ np.ones((3, 30))
    assert assess(dissimilarity_of(x), ASSIGNED) == {
        "silhouette": pytest.approx(silhouette_score(x, LABELS)),
        "davies_bouldin": pytest.approx(davies_bouldin_score(x, LABELS)),
        "calinski_harabasz": pytest.approx(calinski_harabasz_score(x, LABELS)),
    }


def test_one_cluster_and_loners_have_no_quality():
    x = np.eye(6)
    assert assess(dissimilarity_of(x), dict.fromkeys(NAMES, 0)) == {}
    assert assess(dissimilarity_of(x), {n: i for i, n in enumerate(NAMES)}) == {}


def test_clusters_without_spread_have_no_calinski_harabasz():
    assert assess(dissimilarity_of(np.repeat(np.eye(3), 2, axis=0)), ASSIGNED) == {
        "silhouette": pytest.approx(1),
        "davies_bouldin": pytest.approx(0, abs=1e-6),
    }


def test_other_departments_are_refused():
    with pytest.raises(ValueError, match="expected the departments that are compared, f is in one"):
        assess(dissimilarity_of(np.eye(6)), dict.fromkeys("abcde", 0))
