"""``compare``: run configs with several seeds and print how they differ, or go on with ``--resume last|DIR``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from fl_lightning import launch, openmp, signals
from fl_lightning.commands.parser import Parser, not_empty
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import InputError, RunError
from fl_lightning.runs.comparison import plan as compare_plan


def run(argv: list[str]) -> int:
    """Compare."""
    if "--help" in argv or "-h" in argv:
        print(compare_plan.USAGE, end="")
        return 0
    parser = Parser("compare", add_help=False)
    parser.add_argument("--by-department", action="store_true")
    parser.add_argument("--resume", type=not_empty)
    args, argv = parser.read_known(argv)
    if args.resume is None:
        parser.add_argument("--seeds", type=not_empty, default="3")
        seeds, argv = parser.read_known(argv)
        plan, folder = compare_plan.make_plan(argv, seeds.seeds), None
        root = Path(next(iter(plan.configs.values())).output)
    else:
        parser.add_argument("--output", type=not_empty, default="lightning_logs")
        where, argv = parser.read_known(argv)
        if argv:
            raise InputError(
                f"compare: expected only --output and --by-department with --resume, got {argv[0]}; leave it out, or "
                "start a new comparison"
            )
        folder = compare_plan.find_comparison(args.resume, Path(where.output))
        plan = compare_plan.read_plan(folder)
    setup_logging()
    with launch.importing():
        openmp.spin_while_alone()
        from fl_lightning.runs.comparison import report
        from fl_lightning.runs.comparison import runner as runs

    silence_libraries()
    new = folder is None
    if folder is None:
        runs.check_plan(plan, root)
        folder = compare_plan.create(plan, root)
    again = f"fl-lightning compare --resume {shlex.quote(str(folder))}"
    try:
        comparison = runs.run_all(folder, plan, new=new)
    except signals.Stopped as stop:
        print(f"stopped; finished runs and rounds are saved: {again} continues", file=sys.stderr)
        return 128 + stop.number
    report.show(folder, comparison, by_department=args.by_department)
    if comparison.failed:
        raise RunError(f"{len(comparison.failed)} of the runs, see above; {again} tries them again")
    return 0
