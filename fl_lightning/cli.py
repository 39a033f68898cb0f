"""The command line: ``python -m fl_lightning COMMAND``.

Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 and 143 stopped by a signal with the state saved.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence

from fl_lightning import launch, signals
from fl_lightning.commands import COMMANDS
from fl_lightning.errors import InputError, RunError, nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("fl-lightning"))
        return 0
    command, rest = arguments[0], arguments[1:]
    if threading.current_thread() is threading.main_thread():
        signals.install()
    try:
        if command not in COMMANDS:
            raise InputError(f"expected a command ({', '.join(COMMANDS)}), got {command!r}{nearest(command, COMMANDS)}")
        code: int = importlib.import_module(f"fl_lightning.commands.{command}").run(rest)
        return code
    except InputError as error:
        _say("error", error)
        return 2
    except (RunError, OSError) as error:
        _say("failed", error)
        return 1
    except signals.Stopped as stop:
        if launch.is_first():
            saved = stop.note or "nothing was written"
            if stop.run_folder is not None:
                run, verb = shlex.quote(str(stop.run_folder)), "server" if command == "server" else "fit"
                saved = f"finished work is saved: fl-lightning {verb} --resume {run} continues"
            print(f"stopped; {saved}", file=sys.stderr)
        return 128 + stop.number


def usage() -> str:
    """What ``--help`` prints."""
    width = max(len(options) for options, _ in COMMANDS.values())
    names = max(map(len, COMMANDS))
    lines = [f"  {name:<{names}}  {options:<{width}}  {what}" for name, (options, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fl-lightning COMMAND [OPTIONS]      (also: python -m fl_lightning COMMAND)",
            "",
            "Hierarchical federated LoRA fine-tuning of causal language models.",
            "",
            "commands:",
            *lines,
            "",
            "RUN is a run folder or 'last'. 'fl-lightning COMMAND --help' lists a command's options.",
            "",
        ]
    )


def _say(kind: str, error: Exception) -> None:
    """Print one line on stderr; further processes of a run leave that to the first one, which fails as well."""
    if launch.CHILD not in os.environ:
        where = "" if launch.is_first() else f"process {os.environ.get('RANK')}: "
        print(f"{kind}: {where}{' '.join(str(error).split())}", file=sys.stderr)
