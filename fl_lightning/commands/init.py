"""``init [--output FILE] [--method NAME]``: write a config with every key and a comment for each."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fl_lightning.commands.parser import Parser
from fl_lightning.config import templates
from fl_lightning.errors import InputError
from fl_lightning.storage.files import write_text

DESCRIPTION = "Write a YAML config with every key, its default and a comment for each."


def run(argv: list[str]) -> int:
    """Write a config."""
    listed = "\n".join(f"  {name:<20} {what}" for name, what in templates.methods().items())
    parser = Parser("init", DESCRIPTION, epilog=f"methods:\n{listed}")
    parser.add_argument("--output", metavar="FILE", default="config.yaml", help="a new file (default: config.yaml)")
    parser.add_argument("--method", metavar="NAME", help="with the values of a published method, see below")
    args = parser.read(argv)
    text, path = templates.template(args.method), Path(args.output)
    if os.path.lexists(path):
        raise InputError(f"--output: {path} is there already and is not overwritten; choose another, or remove it")
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"--output: {path} cannot be written ({error.strerror}); choose another") from error
    print(f"{path} has every key; edit it, then: fl-lightning fit --config {shlex.quote(str(path))}")
    return 0
