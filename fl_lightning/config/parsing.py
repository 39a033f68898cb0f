"""YAML files, dotted overrides and shortcuts → `RunConfig`, through jsonargparse; and back to YAML.

Unknown keys and wrong types are errors of one line that name the file and line, or the flag, and the nearest key.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fl_lightning.config.checks import describe, nearest_choice
from fl_lightning.config.run import RunConfig
from fl_lightning.config.shortcuts import SHORTCUTS, expand_shortcuts
from fl_lightning.config.yaml_checks import check_yaml, known_keys, line_of, type_of
from fl_lightning.errors import InputError, nearest


def parse_config(argv: Sequence[str], prog: str = "fl_lightning fit") -> RunConfig:
    """The config given by ``--config FILE``, dotted overrides and shortcuts; later arguments override earlier ones.

    Raises:
        InputError: one line that says what was expected and what was there.
        SystemExit: after ``--help`` or ``--print_config``.

    Example:
        >>> parse_config(["--rounds", "2", "--lora.r=4"]).federation.rounds
        2
    """
    arguments = expand_shortcuts(argv)
    for path in _config_files(arguments):
        check_yaml(path)
    parser = make_parser(prog, with_docs=any(argument.endswith(("-h", "help")) for argument in arguments))
    with _one_line_errors(arguments):
        namespace = parser.parse_args(arguments)
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        values = instantiate(namespace)
        return RunConfig(**{field.name: getattr(values, field.name) for field in fields(RunConfig)})


@functools.cache
def make_parser(prog: str, *, with_docs: bool = False) -> Any:
    """The jsonargparse parser of `RunConfig`, with ``--config`` and ``--print_config``; one for each set of arguments.

    Args:
        prog: the command, for ``--help``.
        with_docs: read the docstrings of all fields for ``--help``, which takes longer than parsing.
    """
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=with_docs)

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):  # type: ignore[misc, unused-ignore]
        pass

    class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise InputError(message) from ex

    width = max(map(len, SHORTCUTS)) + 2
    shortcuts = "\n".join(f"  {flag:<{width}}{key}" for flag, key in SHORTCUTS.items())
    parser: Any = Parser(
        prog=prog,
        formatter_class=Formatter,
        description="Train LoRA adapters in federated rounds.",
        epilog=f"shortcuts:\n{shortcuts}",
    )
    parser.add_argument("--config", action="config", help="YAML file; configs/default.yaml shows every key")
    parser.add_class_arguments(RunConfig)
    defaults = functools.cache(parser.get_defaults)  # two fifths of the time of parsing, and always the same
    parser.get_defaults = lambda **options: copy.deepcopy(defaults(**options))
    return parser


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            yield Path(arguments[index + 1])
        elif argument.startswith("--config="):
            yield Path(argument.partition("=")[2])


@contextlib.contextmanager
def _one_line_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Turn the parser's errors of several lines into an `InputError` of one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(_located(_translated(str(error)), arguments)) from error


def _translated(message: str) -> str:
    """A message of jsonargparse in our words and one line; others come back in one line."""
    text = " ".join(message.split())
    if text.lower().startswith("unrecognized arguments:"):
        flag = text.split(":", 1)[1].split()[0]
        key = flag.lstrip("-").partition("=")[0]
        hint = nearest(key, [*known_keys(), *(shortcut[2:] for shortcut in SHORTCUTS)])
        return f"unknown argument {flag}{hint or '; --help lists the arguments'}"
    if text.endswith(": expected one argument"):
        return text.removeprefix("argument ").replace("expected one argument", "expected a value, got none")
    keys = re.findall(r'Parser key "([\w.]+)"', text)
    got = text.rpartition("Got value: ")[2] if "Got value: " in text else text.rpartition("Given value: ")[2]
    if keys and got != text and "subclass" not in text:
        outer, key = (
            keys[0],
            keys[-1],
        )  # the key of a block and in full its value's, or a mapping's and of a value in it
        key = key if key in known_keys() else f"{outer}.{key}"
        kind = type_of(key)
        return f"{key}: expected {describe(kind)}, got {'null' if got == 'None' else got}{nearest_choice(kind, got)}"
    return text.replace("Parser key ", "").replace('"', "'")


def _located(text: str, arguments: Sequence[str]) -> str:
    """A message about a key, beginning with where its value is: the flag, or a YAML file with its line."""
    keys = {key for key in known_keys() if f"'{key}'" in text or text.startswith((f"{key}: ", f"{key}[", f"{key}."))}
    flags = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    for key in sorted(keys, key=len, reverse=True):
        if key in flags:
            return text if text.startswith(key) else f"--{key}: {text}"
        for path in reversed([*_config_files(arguments)]):
            if line := line_of(path, key):
                return f"{path}:{line}: {text}"
    return text


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
