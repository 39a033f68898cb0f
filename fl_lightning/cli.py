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

from fl_lightning import processes, stopping
from fl_lightning.errors import InputError, RunError, nearest

COMMANDS = {
    "init": ("--output FILE", "write a config with every key and a comment for each"),
    "doctor": ("--config FILE", "versions, device, precision, disk, and whether a config fits into memory"),
    "fit": ("--config configs/default.yaml", "train; --resume last|RUN continues a run"),
    "evaluate": ("--run RUN", "(re)write a run's evaluation, or judge any adapters on any records"),
    "report": ("--run RUN", "pictures of a run and one self-contained HTML page"),
    "serve": ("--run RUN", "the adapters of a run behind OpenAI's chat API, next to each other"),
    "chat": ("--run RUN --model hr", "talk to one of them here"),
    "merge": ("--run RUN", "base and adapter of each department as one model for plain transformers"),
    "push": ("--run RUN --repo-prefix ORG/NAME", "adapters and their model cards to the Hugging Face Hub"),
    "server": ("--config configs/default.yaml", "the same run with clients on other machines; --resume last|RUN"),
    "client": ("--department hr --client client_0", "take part in it with the records here"),
    "certs": ("--sites hr/client_0 hr/client_1", "make certificates and keys for a run between machines"),
    "compare": ("--config A.yaml B.yaml --seeds 3", "run configs with several seeds and compare them"),
    "runs": ("--output DIR", "list runs, how far they came and their final figures"),
    "partition": ("SOURCE --by COLUMN --output DIR", "deal a file or data set out to departments and clients"),
    "inspect": ("--data DIR", "look for bad lines, duplicates and leaks in a folder of departments"),
    "completion": ("bash|zsh", "print a script that completes commands and options on Tab"),
}
"""{command: (its main options, what it does)}; `fl_lightning.commands` has a module for each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code comes back."""
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
        stopping.install()
    try:
        if command not in COMMANDS:
            raise InputError(
                f"unknown command {command!r}, wanted one of {', '.join(COMMANDS)}{nearest(command, COMMANDS)}"
            )
        code: int = importlib.import_module(f"fl_lightning.commands.{command}").run(rest)
        return code
    except InputError as error:
        _say("error", error)
        return 2
    except (RunError, OSError) as error:
        _say("failed", error)
        return 1
    except stopping.Stopped as stop:
        if processes.is_first():
            saved = stop.note or "nothing was written"
            if stop.run_folder is not None:
                run, verb = shlex.quote(str(stop.run_folder)), "server" if command == "server" else "fit"
                saved = f"all that was finished is saved: fl-lightning {verb} --resume {run} continues"
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
    """One line on stderr; a process that this command started leaves it to the first one, which fails alike."""
    if processes.CHILD not in os.environ:
        where = "" if processes.is_first() else f"process {os.environ.get('RANK')}: "
        print(f"{kind}: {where}{' '.join(str(error).split())}", file=sys.stderr)
