from fl_lightning.aggregation.weighting import Facts
from fl_lightning.aggregation.weighting.examples import weights


def test_every_record_counts():
    clients = {"hr/b": Facts(30, 1), "hr/a": Facts(10, 9000, [3.0, 1.0])}
    assert weights(clients) == {"hr/b": 30.0, "hr/a": 10.0}


def test_weights_are_not_normalised():
    assert sum(weights({"a": Facts(7, 1), "b": Facts(5, 1)}).values()) == 12.0
