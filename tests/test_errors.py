import pytest

from fl_lightning.errors import InputError, RunError, nearest


def test_nearest_suggests_the_closest_word():
    assert nearest("ronds", ["share", "rounds", "round_num_total"]) == "; did you mean 'rounds'?"


def test_nearest_is_silent_where_nothing_is_close():
    assert nearest("xyzzy", ["rounds", "share"]) == ""


def test_nearest_takes_any_iterable():
    assert nearest("shar", (word for word in ["rounds", "share"])) == "; did you mean 'share'?"


def test_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="rounds: got 0"):
        raise InputError("rounds: got 0")


def test_run_error_is_not_an_input_error():
    assert not issubclass(RunError, ValueError)
    assert issubclass(RunError, RuntimeError)
