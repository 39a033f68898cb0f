from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.aggregation.weighting.examples import weights


def test_every_record_counts():
    clients = {"hr/b": ClientStats(30, 1), "hr/a": ClientStats(10, 9000, [3.0, 1.0])}
    assert weights(clients) == {"hr/b": 30.0, "hr/a": 10.0}


def test_weights_are_not_normalised():
    assert sum(weights({"a": ClientStats(7, 1), "b": ClientStats(5, 1)}).values()) == 12.0
