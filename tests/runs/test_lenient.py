import pytest

from fl_lightning.runs import lenient

ODD = [None, True, 1, 1.5, "a", "1", [], [1], {}, {"a": None}, {"1": {"2": []}}, float("nan"), 10**400, object(), b"x"]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("reader", [lenient.number, lenient.mapping, lenient.numbers, lenient.by_round, lenient.labels])
def test_readers_take_anything(reader, value):
    found = reader(value)
    assert found is None or isinstance(found, (float, dict))


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_matrix_takes_anything(value):
    assert lenient.matrix(value, 2) is None
    assert lenient.matrix([[1, value], [1, 1]], 2) in (None, [[1, 1.0], [1, 1]], [[1, 1.5], [1, 1]])


def test_rounds_are_in_order_and_whole_numbers_only():
    assert list(lenient.by_round({"10": 1, "9": 2, "-1": 3, "1.5": 4, "²": 5, "1" * 10: 6})) == [9, 10]


def test_long_texts_and_control_characters_are_shown_safely():
    assert lenient.text("x" * 600) == "x" * 500 + "…"
    assert lenient.text("a\x1b[31m\u202eb\nc") == "a\\x1b[31m\\u202eb\nc"
