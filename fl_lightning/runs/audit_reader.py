"""Reads ``audit.json``, which may be broken, as the report and the model cards use it."""

from __future__ import annotations

from typing import Any

from fl_lightning.runs.artifacts import AuditBound, AuditResult, AuditTest
from fl_lightning.runs.lenient import mapping, number, numbers, text


def parse_audit(value: Any) -> AuditResult | None:
    """The contents of ``audit.json``; lines that cannot be used are left out, None without any.

    Example:
        >>> parse_audit({"delta": 1e-5, "membership": [{"kind": "client"}]}) is None
        True
    """
    values = mapping(value)
    bounds, tests = [], []
    for line in _lines(mapping(values.get("canaries")).get("bounds")):
        known = numbers(line)
        if {"guesses", "correct", "epsilon", "provable"} <= known.keys():
            bounds.append(
                AuditBound(
                    *_names(line),
                    guesses=int(known["guesses"]),
                    correct=int(known["correct"]),
                    epsilon=known["epsilon"],
                    provable=known["provable"],
                    upper=known.get("upper"),
                )
            )
    keys = ("auc", "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high", "members", "others")
    for line in _lines(values.get("membership")):
        known = numbers(line)
        if known.keys() >= set(keys):
            score = text(line.get("score", ""))
            tests.append(AuditTest(*_names(line), score=score, values={key: known[key] for key in keys}))
    return AuditResult(number(values.get("delta")), bounds, tests) if bounds or tests else None


def _lines(value: Any) -> list[dict[str, Any]]:
    return [mapping(line) for line in value] if isinstance(value, list) else []


def _names(line: dict[str, Any]) -> tuple[str, str]:
    return text(line.get("kind", "")), text(line.get("owner", ""))
