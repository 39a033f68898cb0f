"""Checks of a YAML file before it is parsed: known keys, plain values; an error names the file and the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from fl_lightning.config.checks import field_types
from fl_lightning.config.lora import LoraProfile
from fl_lightning.config.run import RunConfig
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import read_text

TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
MAX_VALUES = 100_000
"""More than any config has; a few lines of YAML can mean billions of values by anchors within anchors."""
MAX_DIGITS = 100
YAML_FORM = "expected lines of 'key: value', with the lines of a block indented by spaces"


def known_keys(cls: Any = RunConfig, prefix: str = "") -> dict[str, type | None]:
    """{dotted key: dataclass of the block, or None for a plain key}."""
    keys: dict[str, type | None] = {}
    for name, hint in field_types(cls).items():
        block = hint if is_dataclass(hint) and isinstance(hint, type) else None
        keys[prefix + name] = block
        if block is not None:
            keys.update(known_keys(block, f"{prefix}{name}."))
    return keys


def type_of(key: str) -> Any:
    """The annotated type of a key; of ``lora.profiles.r``, the type of that field of every profile.

    Example:
        >>> type_of("federation.hierarchy.groups")
        dict[str, list[str]]
    """
    hint: Any = RunConfig
    for part in key.split("."):
        block: Any = hint if is_dataclass(hint) else get_args(hint)[-1]
        hint = field_types(block)[part]
    return hint


def check_yaml(path: Path) -> None:
    """Check that a YAML file is a mapping of known keys to plain values.

    Raises:
        InputError: naming the file, the line and the nearest key.
    """
    text = read_text(path, "a YAML file", name=f"--config {path}")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_values(path, root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not valid YAML ({reason}); {YAML_FORM}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML (nested too deeply); {YAML_FORM}") from error
    if root is None:
        raise InputError(f"{path}: expected at least one key such as 'seed: 1234', got an empty file")
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}:1: expected a mapping of keys such as 'federation:', got {_shown(root)}")
    _check_mapping(path, root, "", known_keys())


def _check_mapping(path: Path, node: yaml.MappingNode, prefix: str, known: dict[str, type | None]) -> None:
    siblings = {key.removeprefix(prefix) for key in known if key.startswith(prefix)}
    siblings = {key for key in siblings if "." not in key}
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key, line = _shown(key_node), key_node.start_mark.line + 1
        if key not in siblings:
            homes = sorted(k for k in known if k.rsplit(".", 1)[-1] == key)
            hint = f"; did you mean '{homes[0]}'?" if homes else nearest(key, siblings)
            raise InputError(f"{path}:{line}: unknown key '{prefix}{key}'{hint}")
        if key in seen:
            raise InputError(f"{path}:{line}: expected each key once, got '{prefix}{key}' twice")
        seen.add(key)
        if known[prefix + key] is not None:
            _check_block(path, key_node, value_node, prefix + key, known)
        elif prefix + key == "lora.profiles" and isinstance(value_node, yaml.MappingNode):
            for name_node, profile_node in value_node.value:
                profile = f"lora.profiles.{_shown(name_node)}"
                _check_block(path, name_node, profile_node, profile, known_keys(LoraProfile, f"{profile}."))


def _check_block(path: Path, key_node: yaml.Node, node: yaml.Node, key: str, known: dict[str, type | None]) -> None:
    if not isinstance(node, yaml.MappingNode):
        line = key_node.start_mark.line + 1
        raise InputError(f"{path}:{line}: {key}: expected a block of keys, got {_shown(node, repr)}")
    _check_mapping(path, node, f"{key}.", known)


def _check_values(path: Path, root: yaml.Node | None) -> None:
    """Check for tags, over-long integers and anchors that multiply, on which the parser of values fails or grows."""
    count = 0

    def visit(node: yaml.Node, parents: tuple[yaml.Node, ...]) -> None:
        nonlocal count
        count += 1
        where = f"{path}:{node.start_mark.line + 1}"
        if node in parents:
            raise InputError(f"{where}: expected plain values, got an anchor within itself; write the values out")
        if count > MAX_VALUES:
            raise InputError(
                f"{where}: expected at most {MAX_VALUES:,} values, got more by anchors within anchors; write the "
                "values out"
            )
        if node.tag.removeprefix("tag:yaml.org,2002:") not in TAGS:
            raise InputError(f"{where}: expected a plain value, got the tag {node.tag!r}; remove the tag")
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
                raise InputError(
                    f"{where}: expected an integer of at most {MAX_DIGITS} digits, got {len(node.value):,}"
                )
        else:
            for item in node.value:
                for child in item if isinstance(item, tuple) else (item,):
                    visit(child, (*parents, node))

    if root is not None:
        visit(root, ())


def _bare(text: str) -> str:
    return repr(text)[1:-1]  # without line ends


def _shown(node: yaml.Node, scalar: Callable[[str], str] = _bare) -> str:
    """A value for a message: the kind of a collection, or a scalar as it is written."""
    if isinstance(node, yaml.CollectionNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return "null" if node.tag.endswith(":null") else scalar(node.value[:80])


def line_of(path: Path, key: str) -> int | None:
    """The line on which a YAML file sets a dotted key; None if it does not."""
    node = yaml.compose(read_text(path, "a YAML file"), Loader=yaml.SafeLoader)
    line = None
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((k, v) for k, v in pairs if k.value == part), None)
        if pair is None:
            return None
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line
