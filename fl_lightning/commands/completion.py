"""``completion bash|zsh``: print a script that completes commands and options on Tab."""

from __future__ import annotations

from fl_lightning.commands import COMMANDS
from fl_lightning.commands.parser import Parser
from fl_lightning.commands.shell_completion import SHELLS, help_of, script
from fl_lightning.errors import InputError, nearest

DESCRIPTION = """Print a script that completes commands, options and their values on Tab.

  bash   eval "$(fl-lightning completion bash)"     in ~/.bashrc
  zsh    eval "$(fl-lightning completion zsh)"      in ~/.zshrc"""


def run(argv: list[str]) -> int:
    """Print a completion script."""
    shell = _parser().read(argv).shell
    if shell not in SHELLS:
        raise InputError(f"completion: expected {' or '.join(SHELLS)}, got {shell!r}{nearest(shell, SHELLS)}")
    print(script(shell, help_texts()), end="")
    return 0


def help_texts() -> dict[str, str]:
    """{command: what its ``--help`` prints} of all commands."""
    return {name: _parser().format_help() if name == "completion" else help_of(name) for name in COMMANDS}


def _parser() -> Parser:
    parser = Parser("completion", DESCRIPTION)
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(SHELLS))
    return parser
