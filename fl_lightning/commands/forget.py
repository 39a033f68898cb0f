"""``forget --run RUN --client hr/client_1``: a new run, byte for byte the one that never had them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning import launch, openmp
from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import RunError
from fl_lightning.storage.forgotten import check_not_forgotten, read_forgotten
from fl_lightning.storage.run_folder import find_run_folder, locked
from fl_lightning.storage.run_layout import CONFIG

if TYPE_CHECKING:
    from fl_lightning.config import RunConfig
    from fl_lightning.runs.forgetting.plan import ForgetPlan

DESCRIPTION = """Take clients, whole departments or records out of a finished run of fit. The result is a new run beside
it, byte for byte the one that fit would have made with data.exclude; rounds in which they took no part are not computed
again if a state before them was kept (retention.first_rounds). A certificate is written into the new run, and the run
before is marked: serve, chat, personalize, merge and push refuse its adapters from then on. After an interruption the
same command goes on."""


def run(argv: list[str]) -> int:
    """Forget."""
    args = _parser().read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    config = parse_config(["--config", str(folder / CONFIG)])
    if args.purge and read_forgotten(folder) is not None:
        _purge(folder, config)
        return 0
    check_not_forgotten(folder)
    devices = config.fabric.devices
    with launch.started(1 if args.dry_run else devices, ["forget", *argv]):
        setup_logging()
        openmp.spin_while_alone()
        from rich.console import Console

        from fl_lightning.runs.forgetting.forget import forget, plan_forget
        from fl_lightning.runs.forgetting.request import ForgetRequest

        silence_libraries()
        request = ForgetRequest.of(args.client, args.department, args.records)
        if args.dry_run:
            _, removal, plan = plan_forget(folder, request, from_start=args.from_start)
            _show_plan(plan, removal.taken_out)
            _show_traces(folder, config)
            print("Nothing was written.")
            return 0
        console = None if sys.stderr.isatty() else Console(quiet=True)
        result = forget(folder, request, from_start=args.from_start, console=console)
    if result is not None:
        certificate = "none, since the run before has no chain" if result.certificate is None else result.certificate
        print(f"without them: {result.run_folder}\ncertificate: {certificate}")
        print(f"{folder} is marked; its adapters are used no more")
        if args.purge:
            _purge(folder, config)
        else:
            _show_traces(folder, config)
    return 0


def _parser() -> Parser:
    parser = Parser("forget", DESCRIPTION)
    parser.takes_run()
    parser.add_argument("--client", nargs="+", default=[], metavar="NAME", help="clients, such as hr/client_1")
    parser.add_argument("--department", nargs="+", default=[], metavar="NAME", help="whole departments, such as hr")
    help_ = "a file with a record, or its digest, in each line"
    parser.add_argument("--records", type=Path, metavar="FILE", help=help_)
    parser.add_argument("--from-start", action="store_true", help="compute all rounds again")
    help_ = "then delete what the run before has left, but its config and chain"
    parser.add_argument("--purge", action="store_true", help=help_)
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost, and write nothing")
    return parser


def _purge(folder: Path, config: RunConfig) -> None:
    """Delete what a marked run has left.

    Raises:
        RunError: if something cannot be deleted.
    """
    from fl_lightning.runs.forgetting.traces import find_copies, find_traces, purge

    with locked(folder):
        traces = find_traces(folder, config)
        try:
            purge(folder, traces)
        except OSError as error:
            raise RunError(
                f"{error.filename or folder}: {error.strerror or error}; expected that it can be deleted: fix the "
                "cause, then give --purge again"
            ) from error
    for trace in traces:
        print(f"deleted: {trace.path} ({trace.what})")
    for copy in find_copies(folder):
        print(f"not deleted: {copy}")


def _show_traces(folder: Path, config: RunConfig) -> None:
    """List what the run before has left."""
    from fl_lightning.runs.forgetting.traces import find_copies, find_traces

    print(f"left in and beside {folder}, which --purge deletes:")
    for trace in find_traces(folder, config):
        print(f"  {trace.path} ({trace.what})")
    print("which it does not:")
    for copy in find_copies(folder):
        print(f"  {copy}")


def _show_plan(plan: ForgetPlan, taken_out: Mapping[str, Any]) -> None:
    """Say what `forget` would do."""
    names = [*taken_out.get("departments", []), *taken_out.get("clients", [])]
    names += [f"{count} records of {client_id}" for client_id, count in taken_out.get("records", {}).items()]
    print(f"taken out: {', '.join(names)}")
    where = f"after round {plan.start_round}" if plan.start_round else "anew"
    print(f"starts {where}: {plan.reason}")
    print(f"computed again: {plan.rounds - plan.start_round} of {plan.rounds} rounds, {plan.fits} fits of clients")
    if plan.reused:
        print(f"taken from the archive: at most {plan.reused} of these fits (retention.updates)")
    if plan.seconds is not None and plan.seconds_anew is not None:
        print(f"expected: {plan.seconds:.0f} s, by the timing of the run; from the start {plan.seconds_anew:.0f} s")
