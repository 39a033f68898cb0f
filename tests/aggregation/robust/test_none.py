from fl_lightning.aggregation.robust import Selection
from fl_lightning.aggregation.robust.none import none


def test_everybody_counts_as_given():
    found = none({"b": {}, "a": {}}, {"a": 2, "b": 5})
    assert found == Selection({"a": 2.0, "b": 5.0}, {"a": 1.0, "b": 1.0}, {})


def test_no_tensor_is_read():
    assert none({"a": None}, {"a": 2.0}).weights == {"a": 2.0}
