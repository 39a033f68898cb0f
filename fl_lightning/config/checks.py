"""Checks of a config block: every field against its type, which says the range or the choices as well.

Ranges are written once, in the type of the field, in the notation of intervals::

    @dataclass
    class FloraConfig(Block, key="federation.flora"):
        momentum: PositiveFraction = 0.1

    FloraConfig(momentum=2)  # InputError: federation.flora.momentum: expected a number in (0, 1], got 2

Only numbers, choices and null are checked here. Other types are checked by jsonargparse where values come from YAML or
the command line, and by type checkers where they come from Python.
"""

from __future__ import annotations

import functools
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, Union, get_args, get_origin, get_type_hints

from fl_lightning.errors import InputError, nearest


class Constraint(Protocol):
    """What a type is annotated with: values that it excludes, and how to say so."""

    def accepts(self, value: Any) -> bool:
        """Whether the value is allowed."""
        ...

    def describe(self, kind: str) -> str:
        """The allowed values in words; `kind` is the type: a number, an integer, text."""
        ...


@dataclass(frozen=True)
class Interval:
    """Finite numbers from `low` to `high`; `open_low` and `open_high` exclude the ends.

    Example:
        >>> Interval(0, 1, open_low=True).describe("a number"), Interval(1).describe("an integer")
        ('a number in (0, 1]', 'an integer of at least 1')
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def accepts(self, value: float) -> bool:
        """Whether the number is in the interval; NaN and infinity never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        return above and below

    def describe(self, kind: str) -> str:
        """The interval in words."""
        if self.high == math.inf:
            return f"{kind} above {self.low:g}" if self.open_low else f"{kind} of at least {self.low:g}"
        return f"{kind} in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


@dataclass(frozen=True)
class NotBlank:
    """Text with more than white space in it; `what` says what the text is."""

    what: str

    def accepts(self, value: str) -> bool:
        """Whether the text holds a word."""
        return isinstance(value, str) and bool(value.strip())

    def describe(self, kind: str) -> str:
        """What the text is."""
        return self.what


PositiveInt: TypeAlias = Annotated[int, Interval(1)]
NonNegativeInt: TypeAlias = Annotated[int, Interval(0)]
PositiveFloat: TypeAlias = Annotated[float, Interval(0, open_low=True)]
NonNegativeFloat: TypeAlias = Annotated[float, Interval(0)]
Fraction: TypeAlias = Annotated[float, Interval(0, 1)]
PositiveFraction: TypeAlias = Annotated[float, Interval(0, 1, open_low=True)]
FractionBelowOne: TypeAlias = Annotated[float, Interval(0, 1, open_high=True)]
OpenFraction: TypeAlias = Annotated[float, Interval(0, 1, open_low=True, open_high=True)]


@dataclass  # since jsonargparse takes a class for a dataclass only if its bases are
class Block:
    """Base of the config's dataclasses: each field is checked when the block is made.

    A subclass with checks over several fields calls ``super().__post_init__()`` first.
    """

    block_key: ClassVar[str]
    """Dotted key of the block in the YAML."""

    def __init_subclass__(cls, *, key: str) -> None:
        cls.block_key = key

    def __post_init__(self) -> None:
        """Check each field.

        Raises:
            InputError: naming the key, the expected values and the one that is there.
        """
        block: Any = type(self)  # mypy takes the class of a dataclass for unhashable
        for name, hint in field_types(block).items():
            value = getattr(self, name)
            if not _accepts(hint, value):
                key = f"{self.block_key}.{name}".lstrip(".")
                check(False, key, describe(hint), value, nearest_choice(hint, value))


def check(ok: bool, key: str, expected: str, got: object, hint: str = "") -> None:
    """Check a value.

    Raises:
        InputError: naming the key, the expected values and the one that is there.
    """
    if not ok:
        raise InputError(f"{key}: expected {expected}, got {'null' if got is None else repr(got)}{hint}")


Refusal: TypeAlias = tuple[str, Callable[[Any], bool], str, str]
"""(key, whether a block makes the choice, why it does not go with another one, what to choose instead)."""


def check_refusals(block: Block, prefix: str, refusals: Iterable[Refusal], beside: str) -> None:
    """Check that a block makes none of the choices that do not go with another one.

    Args:
        block: of the config.
        prefix: of its keys.
        refusals: the choices.
        beside: the other one, and perhaps what else to choose.

    Raises:
        InputError: naming the first key, with the reason and what to choose instead.

    Example:
        >>> from fl_lightning.config import FederationConfig
        >>> refusal = ("share", lambda f: f.share == "all", "there is no server", "none")
        >>> check_refusals(FederationConfig(), "federation", [refusal], "with no server")
        Traceback (most recent call last):
        fl_lightning.errors.InputError: federation.share: there is no server; expected none with no server, got all
    """
    for key, applies, reason, expected in refusals:
        if applies(block):
            value = functools.reduce(getattr, key.split("."), block)
            raise InputError(f"{prefix}.{key}: {reason}; expected {expected} {beside}, got {value}")


def nearest_choice(hint: Any, value: object) -> str:
    """A hint for a misspelled choice: ``"; did you mean 'krum'?"``; empty for other types or if none is similar."""
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return nearest(str(value), map(str, choices))


@functools.cache
def field_types(cls: type[Block]) -> Mapping[str, Any]:
    """{name of a block's field: its type, with annotations}, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return types.MappingProxyType({field.name: hints[field.name] for field in fields(cls)})


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a value is of a type, if that is a number, a choice or null; other types take everything but null."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *constraints = arguments
        return _accepts(kind, value) and all(constraint.accepts(value) for constraint in constraints)
    if origin in (Union, types.UnionType):
        return any(_accepts(member, value) for member in arguments)
    if origin is Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return value is not None


_KINDS = {int: ("an integer", "integers"), float: ("a number", "numbers"), bool: ("true or false", "true or false")}
_KINDS |= {str: ("text", "text"), list: ("a list", "lists"), dict: ("a mapping", "mappings")}


def describe(hint: Any, *, plural: bool = False) -> str:
    """The values of a type in words.

    Example:
        >>> describe(PositiveFraction | None), describe(Literal["a", "all"]), describe(dict[str, list[str]])
        ('a number in (0, 1], or null', 'one of a, all', 'a mapping to lists of text')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        text = describe(arguments[0])
        for constraint in arguments[1:]:
            text = constraint.describe(text)
        return text
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(member) for member in arguments)
    if origin is Literal:
        words = [str(value) for value in arguments if value is not False]  # which stands for YAML's bare off
        return ("one of " if len(words) > 1 else "") + ", ".join(words)
    if hint is type(None):
        return "null"
    text = _KINDS.get(origin or hint, ("a block of keys", "blocks of keys"))[plural]
    if arguments and arguments[-1] is not Any:
        text += f" {'of' if origin is list else 'to'} {describe(arguments[-1], plural=True)}"
    return text
