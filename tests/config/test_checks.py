import dataclasses
import math
from typing import Annotated, Literal, get_args

import pytest

from fl_lightning.config import RunConfig
from fl_lightning.config.checks import Block, Interval, NotBlank, describe, field_types
from fl_lightning.config.yaml_checks import known_keys
from fl_lightning.errors import InputError


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        (Interval(1), [1, 10**20], [0, math.inf], "an x of at least 1"),
        (Interval(0, open_low=True), [1e-300], [0, -1, math.inf], "an x above 0"),
        (Interval(-1, 1), [-1, 0, 1], [-1.1, 1.1], "an x in [-1, 1]"),
        (Interval(0, 1, open_low=True), [0.1, 1], [0, 1.1], "an x in (0, 1]"),
        (Interval(0, 0.5, open_high=True), [0, 0.49], [0.5, -0.1], "an x in [0, 0.5)"),
    ],
)
def test_interval_has_its_numbers_and_never_nan(interval, inside, outside, words):
    assert all(interval.accepts(value) for value in inside)
    assert not any(interval.accepts(value) for value in [*outside, math.nan])
    assert interval.describe("an x") == words


@dataclasses.dataclass
class Example(Block, key="some.block"):
    word: Annotated[str, NotBlank("a word")] = "x"
    count: Annotated[int, Interval(1)] | Literal["auto"] = "auto"
    maybe: Annotated[float, Interval(0, 1)] | None = None
    names: list[str] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"word": " "}, "some.block.word: expected a word, got ' '"),
        ({"word": None}, "some.block.word: expected a word, got null"),
        ({"count": 0}, "some.block.count: expected an integer of at least 1, or auto, got 0"),
        ({"count": 1.5}, "some.block.count: expected an integer of at least 1, or auto, got 1.5"),
        ({"count": True}, "some.block.count: expected an integer of at least 1, or auto, got True"),
        ({"maybe": "x"}, "some.block.maybe: expected a number in [0, 1], or null, got 'x'"),
        ({"maybe": math.nan}, "some.block.maybe: expected a number in [0, 1], or null, got nan"),
        ({"names": None}, "some.block.names: expected a list of text, got null"),
    ],
)
def test_a_block_refuses_a_value_by_its_key(values, message):
    with pytest.raises(InputError) as caught:
        Example(**values)
    assert str(caught.value) == message


def test_a_block_takes_what_its_types_take():
    Example("y", 3, 1, ["a"])
    Example(maybe=None)


def test_every_number_of_the_config_has_a_range():
    for block in [RunConfig, *(cls for cls in known_keys().values() if cls is not None)]:
        for name, hint in field_types(block).items():
            members = [hint, *get_args(hint)] if not hasattr(hint, "__metadata__") else []
            assert int not in members, (block, name)
            assert float not in members, (block, name)


def test_descriptions_are_words():
    assert describe(bool) == "true or false"
    assert describe(Literal["auto"]) == "auto"
    assert describe(RunConfig) == "a block of keys"
