"""The command line: ``python -m fl_lightning COMMAND``.

Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 and 143 stopped by a signal with the state saved.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning import processes, stopping
from fl_lightning.errors import InputError, RunError, nearest

if TYPE_CHECKING:
    from fl_lightning.config import RunConfig

USAGE = """usage: fl-lightning COMMAND [OPTIONS]      (also: python -m fl_lightning COMMAND)

Hierarchical federated LoRA fine-tuning of causal language models.

commands:
  fit       --config configs/default.yaml    train; --resume last|RUN continues a run
  evaluate  --run RUN                         (re)write federated_eval.json and client_eval_all_rounds.json
  server    --config configs/default.yaml    the same run with clients on other machines; --resume last|RUN continues
  client    --config FILE --department hr --client client_0      take part in it with the records here
  compare   --config A.yaml B.yaml --seeds 3  run configs with several seeds and compare them
  certs     --sites hr/client_0 hr/client_1   make certificates and keys for a run between machines

RUN is a run folder or 'last'. 'fl-lightning COMMAND --help' lists a command's options.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code comes back."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "fit": fit,
        "evaluate": evaluate,
        "compare": compare,
        "server": server,
        "client": client,
        "certs": certs,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("fl-lightning"))
        return 0
    command, rest = arguments[0], arguments[1:]
    if threading.current_thread() is threading.main_thread():
        stopping.install()
    try:
        if command not in commands:
            raise InputError(
                f"unknown command {command!r}, wanted one of {', '.join(commands)}{nearest(command, commands)}"
            )
        return commands[command](rest)
    except InputError as error:
        _say("error", error)
        return 2
    except (RunError, OSError) as error:
        _say("failed", error)
        return 1
    except stopping.Stopped as stop:
        if processes.is_first():
            saved = "nothing was written"
            if stop.run_folder is not None:
                run, verb = shlex.quote(str(stop.run_folder)), "server" if command == "server" else "fit"
                saved = f"all that was finished is saved: fl-lightning {verb} --resume {run} continues"
            print(f"stopped; {saved}", file=sys.stderr)
        return 128 + stop.number


def fit(argv: list[str]) -> int:
    """``fit``: train, or continue a run with ``--resume last|RUN``."""
    given = ["fit", *argv]
    config, folder = _config(argv, "fit")
    with processes.started(config.fabric.devices, given):
        _quiet()
        from fl_lightning import run

        _hush()
        run.fit(config, resume=folder)
    return 0


def server(argv: list[str]) -> int:
    """``server``: a run whose clients are on other machines, or its continuation with ``--resume last|RUN``."""
    config, folder = _config(argv, "server")
    _quiet()
    from fl_lightning.network import server as command

    _hush()
    command.serve(config, resume=folder)
    return 0


def client(argv: list[str]) -> int:
    """``client --department D --client C``: take part in a server's run with the records here."""
    if "--help" in argv or "-h" in argv:
        print("fl-lightning client --department D --client C [OPTIONS]\n")
    given = ["client", *argv]
    department, argv = _take(argv, "--department")
    name, argv = _take(argv, "--client")
    from fl_lightning.arguments import parse_config

    config = parse_config(argv, "fl_lightning client")
    if department is None or name is None:
        missing = "--department" if department is None else "--client"
        raise InputError(f"client: no {missing}, wanted --department and --client, such as hr and client_0")
    with processes.started(config.fabric.devices, given):
        _quiet()
        from fl_lightning.network import client as command

        _hush()
        command.attend(config, department, name)
    return 0


def _config(argv: list[str], command: str) -> tuple[RunConfig, Path | None]:
    """(config, the run folder to go on with or None) of a command that trains."""
    from fl_lightning.arguments import parse_config

    if "--help" in argv or "-h" in argv:
        print(f"fl-lightning {command} [--resume last|RUN] [OPTIONS]\n")
    prog = f"fl_lightning {command}"
    resume, argv = _take(argv, "--resume")
    if resume is None:
        return parse_config(argv, prog), None
    from fl_lightning.run_folder import find_run_folder

    root = _take(argv, "--output")[0] or parse_config(argv, prog).output
    folder = find_run_folder(resume, Path(root))
    # What the run was made with comes first, so that arguments given now win.
    return parse_config(["--config", str(folder / "config.yaml"), *argv], prog), folder


def evaluate(argv: list[str]) -> int:
    """``evaluate --run RUN``: evaluate the adapters of a run again and print the table."""
    if "--help" in argv or "-h" in argv:
        print("usage: fl-lightning evaluate --run RUN [--output DIR]\n\nRUN is a run folder, or 'last' under --output.")
        return 0
    given = ["evaluate", *argv]
    name, argv = _take(argv, "--run")
    output, argv = _take(argv, "--output")
    if argv:
        raise InputError(f"unknown argument {argv[0]}{nearest(argv[0], ['--run', '--output'])}")
    if name is None:
        raise InputError("evaluate: no --run, wanted --run RUN with a run folder or 'last'")
    from fl_lightning.run_folder import find_run_folder

    folder = find_run_folder(name, Path(output or "lightning_logs"))
    from fl_lightning.arguments import parse_config

    devices = parse_config(["--config", str(folder / "config.yaml")]).fabric.devices
    with processes.started(devices, given):
        _quiet()
        from fl_lightning import run

        _hush()
        result = run.evaluate(folder)
    if result is None:
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), title_justify="left")
    table.add_column("department")
    for column in ("loss", "perplexity", "token accuracy"):
        table.add_column(column, justify="right")
    for who, values in [*result["departments"].items(), ("mean", result["mean"])]:
        base, final = values["base"], values["final"]
        table.add_row(
            who,
            f"{base['loss']:.3f} → {final['loss']:.3f}",
            f"{base['perplexity']:.1f} → {final['perplexity']:.1f}",
            f"{base['token_accuracy']:.3f} → {final['token_accuracy']:.3f}",
        )
    Console().print(table)
    return 0


def compare(argv: list[str]) -> int:
    """``compare``: run configs with several seeds and print how they differ, or go on with ``--resume last|DIR``."""
    from fl_lightning import compare_plan

    if "--help" in argv or "-h" in argv:
        print(compare_plan.USAGE, end="")
        return 0
    by_department, argv = "--by-department" in argv, [item for item in argv if item != "--by-department"]
    resume, argv = _take(argv, "--resume")
    if resume is None:
        seeds, argv = _take(argv, "--seeds")
        plan, folder = compare_plan.make_plan(argv, seeds or "3"), None
        root = Path(next(iter(plan.configs.values())).output)
    else:
        output, argv = _take(argv, "--output")
        if argv:
            raise InputError(
                f"{argv[0]}: got it with --resume, wanted --output or --by-department; start a new comparison"
            )
        folder = compare_plan.find_comparison(resume, Path(output or "lightning_logs"))
        plan = compare_plan.read_plan(folder)
    _quiet()
    from fl_lightning import compare as runs
    from fl_lightning import comparison_report

    _hush()
    new = folder is None
    if folder is None:
        runs.check(plan, root)
        folder = compare_plan.create(plan, root)
    again = f"fl-lightning compare --resume {shlex.quote(str(folder))}"
    try:
        comparison = runs.run_all(folder, plan, new=new)
    except stopping.Stopped as stop:
        print(f"stopped; all that was finished is saved: {again} continues", file=sys.stderr)
        return 128 + stop.number
    comparison_report.show(folder, comparison, by_department=by_department)
    if comparison.failed:
        raise RunError(f"{len(comparison.failed)} of the runs, see above; {again} tries them again")
    return 0


def certs(argv: list[str]) -> int:
    """``certs``: make a certificate authority, a server's certificate and a key for every site."""
    from fl_lightning.network import certs_command

    return certs_command.certs(argv)


def _say(kind: str, error: Exception) -> None:
    """One line on stderr; a process that this command started leaves it to the first one, which fails alike."""
    if processes.CHILD not in os.environ:
        where = "" if processes.is_first() else f"process {os.environ.get('RANK')}: "
        print(f"{kind}: {where}{' '.join(str(error).split())}", file=sys.stderr)


def _take(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """(value of the flag or None, the other arguments)."""
    rest, value = [], None
    items = iter(argv)
    for item in items:
        if item == flag:
            value = next(items, None)
        elif item.startswith(f"{flag}="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
            continue
        if not value or value.startswith("--"):
            raise InputError(f"{flag}: no value, wanted one")
    return value, rest


def _quiet() -> None:
    """Telemetry off, third parties' notices that no user can act on away, our own log on the terminal."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", module="lightning")
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="[%X]")
    ours = logging.getLogger("fl_lightning")
    if not ours.handlers:
        ours.addHandler(handler)
        ours.setLevel(logging.INFO if processes.is_first() else logging.ERROR)
        ours.propagate = False
    _hush()


def _hush() -> None:
    """Third parties' log lines away; before their import and after it, which sets levels of its own."""
    quiet = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes", "huggingface_hub")
    for name in quiet:
        logging.getLogger(name).setLevel(logging.ERROR)
