"""Checks of single values of the configuration: each names the key in full, what was got and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from fl_lightning.errors import InputError


def check(ok: bool, key: str, got: object, wanted: str) -> None:
    """Check a value.

    Raises:
        InputError: naming the key, what was got and what was wanted.
    """
    if not ok:
        raise InputError(f"{key}: got {got!r}, wanted {wanted}")


def check_null(block: Any, prefix: str) -> None:
    """Only fields typed ``X | None`` may be null; YAML's null would otherwise reach the comparisons below."""
    for item in fields(block):
        if getattr(block, item.name) is None and "None" not in str(item.type):
            raise InputError(f"{prefix}{item.name}: got null, wanted a value ({item.type})")


def positive(key: str, value: float) -> None:
    """Check that a number is finite and above 0."""
    check(math.isfinite(value) and value > 0, key, value, "a finite number above 0")


def at_least(key: str, value: int, low: int) -> None:
    """Check an integer against its lower bound."""
    check(value >= low, key, value, f"an integer of at least {low}")


def unit(key: str, value: float, *, zero: bool = True) -> None:
    """Check that a number is in [0, 1], or in (0, 1]."""
    ok = 0 <= value <= 1 if zero else 0 < value <= 1
    check(ok, key, value, "a number in [0, 1]" if zero else "a number above 0 and at most 1")


def one_of(key: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is one of the choices."""
    check(value in choices, key, value, "one of " + ", ".join(choices))
