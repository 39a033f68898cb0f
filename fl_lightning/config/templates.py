"""The YAML of a new config: ``configs/default.yaml`` with its comments, and the values of a method.

The package contains the repository's ``configs`` folder as a link, so there is one copy of every file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fl_lightning import bundled
from fl_lightning.errors import InputError, nearest

FOLDER = Path(bundled.__file__).parent / "configs"
MAX_WIDTH = 120
"""Longest line, in characters."""


def methods() -> dict[str, str]:
    """{name: its leading comment} of the files in ``configs/methods``, sorted.

    Example:
        >>> methods()["fedsa_lora"]
        'FedSA-LoRA (Guo et al. 2024, arXiv 2410.01463): A is shared, B stays with each client.'
    """
    files = sorted((FOLDER / "methods").glob("*.yaml"))
    return {path.stem: " ".join(_head(path.read_text(encoding="utf-8"))) for path in files}


def _head(text: str) -> list[str]:
    """The leading comment of a file, without the command that runs it."""
    lines = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())]
    return [line for line in lines if not line.startswith("python -m")]


def template(method: str | None = None) -> str:
    """The text of a config with every key and a comment for each.

    Args:
        method: a name in `methods`, whose values replace the defaults.

    Raises:
        InputError: if there is no such method.

    Example:
        >>> [line for line in template("fedsa_lora").splitlines() if line.startswith("  share:")][0][:10]
        '  share: a'
    """
    text = (FOLDER / "default.yaml").read_text(encoding="utf-8")
    if method is None:
        return text
    known = methods()
    if method not in known:
        raise InputError(f"--method: expected one of {', '.join(known)}, got {method!r}{nearest(method, known)}")
    source = (FOLDER / "methods" / f"{method}.yaml").read_text(encoding="utf-8")
    for path, value in _leaves(_composed(source), _blocks(text)):
        text = _put(text, path, value)
    lines = [*_head(source), "Every key is listed; those of the method have its values."]
    return "".join(f"# {line}\n" for line in lines) + text[text.index("seed:") :]


def _composed(text: str) -> Any:
    """YAML as nodes, which have positions."""
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _blocks(text: str) -> set[str]:
    """Dotted names of the keys of a config that hold other keys."""
    names = set()

    def visit(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode) and value.value:
                names.add(prefix + key.value)
                visit(value, f"{prefix}{key.value}.")

    visit(_composed(text), "")
    return names


def _leaves(node: yaml.Node, blocks: set[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, its value as YAML in one line) of every key that is not a block."""
    for key, value in node.value:
        name = prefix + key.value
        if name in blocks:
            yield from _leaves(value, blocks, f"{name}.")
        else:
            yield name, _one_line(value)


def _one_line(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "{" + ", ".join(f"{_one_line(key)}: {_one_line(value)}" for key, value in node.value) + "}"
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(_one_line(item) for item in node.value) + "]"
    text = str(node.value)
    return repr(text) if isinstance(node, yaml.ScalarNode) and node.style else text


def _put(text: str, path: str, value: str) -> str:
    """Replace a key's value; the comment stays in its column, or moves to the line above if there is no room."""
    node = _composed(text)
    for part in path.split("."):
        node = next(child for key, child in node.value if key.value == part)
    start, end = node.start_mark.index, node.end_mark.index
    before, (line, newline, after) = text[:start], text[end:].partition("\n")
    comment = line.lstrip(" ")
    room = end - start + len(line) - len(comment) - len(value)
    begin = before.rindex("\n") + 1
    fits = len(before) - begin + len(value) + room + len(comment) <= MAX_WIDTH
    if not comment or (room >= 2 and fits):
        return before + value + (" " * room + comment if comment else "") + newline + after
    indent = " " * (len(before[begin:]) - len(before[begin:].lstrip(" ")))
    return f"{before[:begin]}{indent}{comment}\n{before[begin:]}{value}{newline}{after}"
