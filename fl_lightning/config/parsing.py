"""YAML, dotted overrides and shortcut flags into a `RunConfig`, by way of jsonargparse.

Unknown keys and wrong types are errors of one line that name file and line, or the flag, and the nearest key.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError, nearest

SHORTCUTS = {
    "--rounds": "federation.rounds",
    "--clients-per-dept": "data.clients_per_dept",
    "--local-epochs": "training.local_epochs",
    "--learning-rate": "training.learning_rate",
    "--max-records": "data.max_records",
    "--batch-size": "training.batch_size",
    "--lora-r": "lora.r",
    "--lora-alpha": "lora.lora_alpha",
    "--lora-dropout": "lora.lora_dropout",
    "--target-modules": "lora.target_modules",
    "--num-clusters": "federation.client_clusters.num_clusters",
    "--global-mix": "federation.client_clusters.global_mix",
    "--dept-clustering": "federation.dept_clusters.enabled",
    "--no-dept-clustering": "federation.dept_clusters.enabled",
    "--load-in-4bit": "model.load_in_4bit",
    "--device-map": "fabric.accelerator",
    "--dtype": "fabric.precision",
    "--data": "data.root",
    "--output": "output",
    "--seed": "seed",
}
SWITCHES = {"--dept-clustering": "true", "--no-dept-clustering": "false", "--load-in-4bit": "true"}

TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
MAX_VALUES = 100_000
"""More than any config has; YAML of a few lines can mean billions by anchors within anchors."""
MAX_DIGITS = 100
YAML_FORM = "wanted lines of 'key: value', those of a block indented by spaces"


def parse_config(argv: Sequence[str], prog: str = "fl_lightning fit") -> RunConfig:
    """The config that arguments mean: ``--config FILE``, dotted overrides and shortcuts, the later one wins.

    Raises:
        InputError: one line saying what was got and what was wanted.
        SystemExit: after ``--help`` or ``--print_config``.

    Example:
        >>> parse_config(["--rounds", "2", "--lora.r=4"]).federation.rounds
        2
    """
    arguments = expand_shortcuts(argv)
    for path in _config_files(arguments):
        check_keys(path)
    parser = make_parser(prog)
    with _one_line_errors(arguments):
        namespace = parser.parse_args(arguments)
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        values = instantiate(namespace)
        names = [f.name for f in dataclasses.fields(RunConfig)]
        return RunConfig(**{name: getattr(values, name) for name in names})


def make_parser(prog: str) -> Any:
    """The jsonargparse parser of `RunConfig`, with ``--config`` and ``--print_config``."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):  # type: ignore[misc, unused-ignore]
        pass

    class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise InputError(message) from ex

    width = max(map(len, SHORTCUTS)) + 2
    shortcuts = "\n".join(f"  {flag:<{width}}{key}" for flag, key in SHORTCUTS.items())
    parser = Parser(
        prog=prog,
        formatter_class=Formatter,
        description="Train federatedly.",
        epilog=f"shortcuts of nested keys:\n{shortcuts}",
    )
    parser.add_argument("--config", action="config", help="YAML file; configs/default.yaml shows every key")
    parser.add_class_arguments(RunConfig)
    return parser


def expand_shortcuts(argv: Sequence[str]) -> list[str]:
    """Shortcut flags replaced by the dotted overrides that they stand for.

    Raises:
        InputError: if a flag lacks its value.

    Example:
        >>> expand_shortcuts(["--rounds", "5", "--target-modules", "q_proj", "k_proj", "--no-dept-clustering"])[:2]
        ['--federation.rounds=5', '--lora.target_modules=["q_proj", "k_proj"]']
    """
    expanded, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in SHORTCUTS:
            expanded.append(flag + equals + value)
            continue
        values = [value] if equals else []
        if flag in SWITCHES:
            if equals:
                raise InputError(
                    f"{flag}: got the value {value!r}, wanted the flag alone, or --{SHORTCUTS[flag]}={value}"
                )
            values = [SWITCHES[flag]]
        elif flag == "--target-modules":
            while not equals and rest and not rest[0].startswith("-"):
                values.append(rest.pop(0))
            names = [name for v in values for name in v.replace(",", " ").split()]
            values = [str(names).replace("'", '"')] if names else []
        elif not equals and rest and (not rest[0].startswith("-") or _is_number(rest[0])):
            values.append(rest.pop(0))
        if not values:
            raise InputError(f"{flag}: no value, wanted one ({SHORTCUTS[flag]})")
        expanded.append(f"--{SHORTCUTS[flag]}={values[0]}")
    return expanded


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            yield Path(arguments[index + 1])
        elif argument.startswith("--config="):
            yield Path(argument.partition("=")[2])


def known_keys(cls: Any = RunConfig, prefix: str = "") -> dict[str, type | None]:
    """{dotted key: dataclass of the block, or None for a plain key}."""
    keys: dict[str, type | None] = {}
    for field in dataclasses.fields(cls):
        factory: Any = field.default_factory
        block = factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None
        keys[prefix + field.name] = block
        if block is not None:
            keys.update(known_keys(block, f"{prefix}{field.name}."))
    return keys


def check_keys(path: Path) -> None:
    """Check that a YAML file is a mapping of known keys.

    Raises:
        InputError: naming file, line and the nearest key.
    """
    if os.path.exists(path) and not path.is_file():  # a FIFO would wait for its writer
        raise InputError(f"--config {path}: cannot be read (not a regular file); wanted a YAML file")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        _check_values(path, root)
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); wanted a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not valid YAML ({reason}); {YAML_FORM}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML (nested too deeply); {YAML_FORM}") from error
    if root is None:
        raise InputError(f"{path}: no key in the file; wanted at least one such as 'seed: 1234', or leave out --config")
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}:1: got {_shown(root)}, wanted a mapping of keys such as 'federation:'")
    _check_mapping(path, root, "", known_keys())


def _check_mapping(path: Path, node: yaml.MappingNode, prefix: str, known: dict[str, type | None]) -> None:
    siblings = {key.removeprefix(prefix) for key in known if key.startswith(prefix)}
    siblings = {key for key in siblings if "." not in key}
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key, line = _shown(key_node), key_node.start_mark.line + 1
        if key not in siblings:
            home = sorted(k for k in known if k.rsplit(".", 1)[-1] == key)
            hint = f"; did you mean '{home[0]}'?" if home else nearest(key, siblings)
            raise InputError(f"{path}:{line}: unknown key '{prefix}{key}'{hint}")
        if key in seen:
            raise InputError(f"{path}:{line}: key '{prefix}{key}' stands there twice; remove one")
        seen.add(key)
        if known[prefix + key] is not None:
            if not isinstance(value_node, yaml.MappingNode):
                got = _shown(value_node, repr)
                raise InputError(f"{path}:{line}: '{prefix}{key}' wants keys of its own, got {got}")
            _check_mapping(path, value_node, f"{prefix}{key}.", known)


def _check_values(path: Path, root: yaml.Node | None) -> None:
    """Check what the reader of the values gives up at or grows on: tags, and anchors that multiply."""
    count = 0

    def visit(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
        nonlocal count
        count += 1
        where = f"{path}:{node.start_mark.line + 1}"
        if node in above:
            raise InputError(f"{where}: got an anchor that contains itself; write the values out")
        if count > MAX_VALUES:
            raise InputError(f"{where}: got anchors that make over {MAX_VALUES:,} values; write the values out")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in TAGS:
            raise InputError(f"{where}: got the tag {node.tag!r}, wanted a plain value; remove the tag")
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
                raise InputError(f"{where}: got an integer of {len(node.value):,} digits, wanted at most {MAX_DIGITS}")
        else:
            for item in node.value:
                for child in item if isinstance(item, tuple) else (item,):
                    visit(child, (*above, node))

    if root is not None:
        visit(root, ())


def _bare(text: str) -> str:
    return repr(text)[1:-1]  # without line ends


def _shown(node: yaml.Node, scalar: Callable[[str], str] = _bare) -> str:
    """A value for a message: its kind, or a scalar as it is written."""
    if isinstance(node, yaml.CollectionNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return "null" if node.tag.endswith(":null") else scalar(node.value[:80])


@contextlib.contextmanager
def _one_line_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Turn the parser's many-line errors into an `InputError` of one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except InputError as error:
        raise InputError(_tidy(str(error), arguments)) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(_tidy(str(error), arguments)) from error


def _tidy(message: str, arguments: Sequence[str]) -> str:
    text = " ".join(message.split()).replace("Parser key ", "").replace('"', "'")
    if text.lower().startswith("unrecognized arguments:"):
        flag = text.split(":", 1)[1].split()[0]
        key = flag.lstrip("-").partition("=")[0]
        hint = nearest(key, [*known_keys(), *(s[2:] for s in SHORTCUTS)])
        return f"unknown argument {flag}{hint or ', wanted one that --help lists'}"
    text = text.replace(": expected one argument", ": no value, wanted one")
    if match := re.fullmatch(r"'([\w.]+)': Expected an? (.+)\. Got value: (.*)", text):
        wanted = re.sub(r"<class '(\w+)'>", r"\1", match[2]).replace("typing.Literal", "one of ")
        text = f"{match[1]}: got {match[3]}, wanted {wanted}"
    named = {key for key in known_keys() if f"'{key}'" in text or text.startswith((f"{key}: ", f"{key}["))}
    given = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    for key in sorted(named, key=len, reverse=True):
        if key in given:
            return text if text.startswith(key) else f"--{key}: {text}"
        for path in reversed([*_config_files(arguments)]):
            if line := _line_of(path, key):
                return f"{path}:{line}: {text}"
    return text


def _line_of(path: Path, key: str) -> int | None:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = None
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((k, v) for k, v in pairs if k.value == part), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def to_yaml(config: RunConfig) -> str:
    """The config as YAML, keys in the order of the dataclasses."""
    return yaml.dump(config.to_dict(), Dumper=_Quoting, sort_keys=False, allow_unicode=True)


class _Quoting(yaml.SafeDumper):
    """Quotes strings that a YAML 1.2 reader takes for numbers: ``1e3`` as an output folder, ``12e4567`` as a commit."""


def _quote_numbers(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text.replace("_", ""))
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Quoting.add_representer(str, _quote_numbers)
