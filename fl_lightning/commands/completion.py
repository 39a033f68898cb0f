"""``completion bash|zsh``: print a script that completes commands and options on Tab."""

from __future__ import annotations

from fl_lightning.commands import COMMANDS
from fl_lightning.commands.parser import Parser
from fl_lightning.commands.shell_completion import SHELLS, script
from fl_lightning.errors import InputError, nearest

DESCRIPTION = """Print a script that completes commands, options and their values on Tab.

  bash   eval "$(fl-lightning completion bash)"     in ~/.bashrc
  zsh    eval "$(fl-lightning completion zsh)"      in ~/.zshrc"""


def run(argv: list[str]) -> int:
    """Print a completion script."""
    parser = Parser("completion", DESCRIPTION)
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(SHELLS))
    given = parser.read(argv)
    if given.shell not in SHELLS:
        raise InputError(f"completion: got {given.shell!r}, wanted {' or '.join(SHELLS)}{nearest(given.shell, SHELLS)}")
    print(script(given.shell, COMMANDS), end="")
    return 0
