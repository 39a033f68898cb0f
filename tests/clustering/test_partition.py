import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.clustering.partition import Clustering, clusters_from_labels, number_by_first_appearance


def test_clusters_invert_assignments():
    assert clusters_from_labels({"b": 1, "a": 0, "c": 1}) == {0: ["a"], 1: ["b", "c"]}


def test_clustering_counts_its_clusters():
    clustering = Clustering({"a": 0, "b": 1, "c": 0}, {1: 1.0}, ["a", "b", "c"], np.eye(3))
    assert clustering.n_clusters == 2
    assert clustering.clusters == {0: ["a", "c"], 1: ["b"]}


def test_labels_are_numbered_by_first_appearance():
    assert number_by_first_appearance(np.array([4, 4, 0, 2, 0, 9])) == [0, 0, 1, 2, 1, 3]


@given(st.lists(st.integers(-5, 5)))
def test_numbering_is_idempotent_and_keeps_the_partition(labels):
    new = number_by_first_appearance(labels)
    assert number_by_first_appearance(new) == new
    assert len(set(zip(labels, new, strict=True))) == len(set(labels)) == len(set(new))
    assert new[:1] == [0][: len(new)]
    assert all(later <= max(new[:i], default=-1) + 1 for i, later in enumerate(new))
