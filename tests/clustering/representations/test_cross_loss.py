import numpy as np
import pytest

from fl_lightning.clustering.representations.cross_loss import cross_loss


def test_it_is_what_strangers_lose_both_ways():
    losses = np.array([[1.0, 2.5, 4.0], [1.2, 2.0, 3.0], [5.0, 6.0, 1.5]])
    # hr–it: (2.5 − 2.0 + 1.2 − 1.0) / 2; hr–ops: (4.0 − 1.5 + 5.0 − 1.0) / 2; it–ops: (3.0 − 1.5 + 6.0 − 2.0) / 2
    d = cross_loss(["hr", "it", "ops"], losses=losses).dissimilarity
    np.testing.assert_allclose(d, [[0, 0.35, 3.25], [0.35, 0, 2.75], [3.25, 2.75, 0]])


def test_who_does_better_than_those_at_home_is_at_no_distance():
    assert cross_loss(["hr", "it"], losses=np.array([[1.0, 0.5], [0.5, 1.0]])).dissimilarity.max() == 0


def test_names_are_taken_in_sorted_order():
    dissimilarity = cross_loss({"it": 0, "hr": 0}, losses=np.array([[1.0, 2.0], [3.0, 1.0]]))
    assert dissimilarity.names == ["hr", "it"]
    assert dissimilarity.gram is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"losses: expected shape \(2, 2\), in order of \['hr', 'it'\], got \(3, 3\)"):
        cross_loss(["hr", "it"], losses=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="losses: expected finite numbers, got nan for hr on records of it"):
        cross_loss(["hr", "it"], losses=np.array([[1.0, np.nan], [1.0, 1.0]]))
