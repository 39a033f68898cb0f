"""Checks a chain and its signature, and names the first line that is not right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_lightning.provenance.chain import Chain, ChainError, parse_line
from fl_lightning.provenance.digests import NO_DIGEST, bytes_digest, canonical
from fl_lightning.provenance.signing import is_signed

FORMS: dict[str, dict[str, type]] = {
    "start": {"run": str, "config": str, "base": str, "versions": dict, "states": dict},
    "round": {"round": int, "clients": dict, "departments": dict, "states": dict},
    "end": {"rounds": int, "files": dict, "folders": dict, "checkpoints": dict},
}
"""Keys that every line of a kind has, besides ``kind`` and ``previous``, and the forms of their values."""

PARTS: dict[str, type] = {
    "clients": dict, "departments": dict, "states": dict, "versions": str, "files": str, "folders": str,
    "checkpoints": str,
}  # fmt: skip
"""Forms of the values in these, where a line has them."""

END_KEYS = {*FORMS["end"], "kind", "previous", "public_key", "signature"}
"""All keys of the last line: nothing after it would show that one was added."""


def check_chain(data: bytes, name: str = "ledger.jsonl") -> Chain:
    """The chain in the bytes of a ledger, all of whose lines fit.

    Args:
        data: of the file.
        name: of the file, for messages.

    Raises:
        ChainError: naming the first line that was changed, is missing, or is not where it belongs.
    """
    lines = data.split(b"\n")
    if lines.pop() or not lines:
        number = len(lines) + 1
        torn = (
            "changed, or the run was stopped while it wrote the line (fit --resume continues it): expected a whole "
            "line with a newline, got a part"
            if data
            else "missing: expected the lines of a run, got none"
        )
        raise ChainError(f"{name}:{number}: {torn}")
    digests = [bytes_digest(line) for line in lines]
    values: list[dict[str, Any]] = []
    for index, line in enumerate(lines):
        where = f"{name}:{index + 1}"
        try:
            value = parse_line(line)
        except ValueError as error:
            raise ChainError(f"{where}: changed: {error}") from error
        previous = digests[index - 1] if index else NO_DIGEST
        if value.get("previous") != previous:
            raise ChainError(_broken_link(name, index, lines, digests))
        if problem := _problem_with_form(value, index, lines):
            raise ChainError(f"{where}: {problem}")
        values.append(value)
    if values[-1]["kind"] != "end":
        raise ChainError(
            f"{name}:{len(lines) + 1}: missing: the line that ends the run, after round {len(lines) - 1}; the ledger "
            "was cut off, or the run is not finished (fit --resume continues it). The lines before hold"
        )
    return Chain(values, digests)


def check_signature(chain: Chain, public_key: str | None, name: str = "ledger.jsonl") -> str | None:
    """Check the signature of a chain's last line.

    Args:
        chain: from `check_chain`.
        public_key: that must have signed it; None accepts the one that the line names, or no signature.
        name: of the file, for messages.

    Returns:
        The public key; None if the chain is unsigned.

    Raises:
        ChainError: if the signature is missing, wrong, or another key's.
    """
    end, where = chain.lines[-1], f"{name}:{len(chain.lines)}"
    key, signature = end.get("public_key"), end.get("signature")
    if key is None and signature is None:
        if public_key is not None:
            raise ChainError(f"{where}: unsigned: expected a signature of the key {public_key[:16]}…, got none")
        return None
    if not isinstance(key, str) or not isinstance(signature, str):
        raise ChainError(f"{where}: unsigned: expected public_key and signature as texts")
    if public_key is not None and key != public_key:
        raise ChainError(f"{where}: signed by another key: expected {public_key[:16]}…, got {key[:16]}…")
    if not is_signed(key, signature, signed_bytes(end)):
        raise ChainError(f"{where}: changed: its signature is not one of the key {key[:16]}… for this line")
    return key


def signed_bytes(end: dict[str, Any]) -> bytes:
    """What the signature of an ``end`` line is of: the line without it."""
    return canonical({key: value for key, value in end.items() if key != "signature"})


def _problem_with_form(value: dict[str, Any], index: int, lines: Sequence[bytes]) -> str | None:
    """What is wrong with a line's kind, number or keys; None if nothing is."""
    kind, is_last = value["kind"], index == len(lines) - 1
    if (kind == "start") != (index == 0):
        return f"out of order: expected {'start' if index == 0 else 'round or end'}, got {kind}"
    if kind == "end" and not is_last:
        return f"out of order: expected the end of the run in line {len(lines)}"
    for key, form in FORMS[kind].items():
        if not isinstance(value.get(key), form) or isinstance(value.get(key), bool):
            return f"changed: {key}: expected {form.__name__}, got {type(value.get(key)).__name__}"
    for key in sorted(PARTS.keys() & value.keys()):
        if not isinstance(value[key], dict):
            return f"changed: {key}: expected dict, got {type(value[key]).__name__}"
        if wrong := [name for name, part in value[key].items() if not isinstance(part, PARTS[key])]:
            return f"{wrong[0][:80]}: changed: {key}: expected {PARTS[key].__name__}"
    if not all(isinstance(digest, str) for states in value.get("states", {}).values() for digest in states.values()):
        return "changed: states: expected {kind: {name: digest}}"
    if kind != "end" and "departments" not in value["states"]:
        return "changed: states: expected those of departments, got none"
    if kind == "end" and (added := sorted(value.keys() - END_KEYS)):
        return f"changed: {added[0][:40]!r} is no key of this line"
    number = {"start": 0, "round": value.get("round"), "end": value.get("rounds")}[kind]
    expected = index - 1 if kind == "end" else index
    if number != expected:
        return f"{'missing or out of order'}: expected round {expected}, got {str(number)[:20]}"
    return None


def _broken_link(name: str, index: int, lines: Sequence[bytes], digests: Sequence[str]) -> str:
    """Which of two lines that do not fit together is not right: the next line tells."""
    if index == 0:
        return f"{name}:1: changed, or not the first line: previous: expected {NO_DIGEST[:8]}…"
    try:
        follows = index + 1 < len(lines) and parse_line(lines[index + 1]).get("previous") == digests[index]
    except ValueError:
        follows = False
    if follows or index + 1 == len(lines):
        return (
            f"{name}:{index}: changed, or a line after it is missing or out of order: line {index + 1} does not have "
            "its SHA-256"
        )
    return (
        f"{name}:{index + 1}: changed, missing or out of order: it does not have the SHA-256 of line {index}, nor "
        f"has line {index + 2} that of line {index + 1}"
    )
