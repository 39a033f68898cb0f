from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.aggregation.weighting.tokens import weights


def test_every_token_counts():
    assert weights({"long": ClientStats(2, 600), "short": ClientStats(9, 200)}) == {"long": 600.0, "short": 200.0}


def test_a_client_without_tokens_has_no_weight():
    assert weights({"a": ClientStats(2, 600), "b": ClientStats(9, 0)}) == {"a": 600.0, "b": 0.0}


def test_no_tokens_anywhere_falls_back_to_examples():
    assert weights({"a": ClientStats(2, 0), "b": ClientStats(9, 0)}) == {"a": 2.0, "b": 9.0}
