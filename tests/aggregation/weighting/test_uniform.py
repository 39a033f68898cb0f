from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.aggregation.weighting.uniform import weights


def test_one_client_one_vote():
    assert weights({"large": ClientStats(1000, 10**6), "small": ClientStats(1, 0)}) == {"large": 1.0, "small": 1.0}
