"""``compare``: run configs with several seeds and print how they differ, or go on with ``--resume last|DIR``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from fl_lightning import signals
from fl_lightning.console import hush, quiet, take_option
from fl_lightning.errors import InputError, RunError
from fl_lightning.runs.comparison import plan as compare_plan


def run(argv: list[str]) -> int:
    """Compare."""
    if "--help" in argv or "-h" in argv:
        print(compare_plan.USAGE, end="")
        return 0
    by_department, argv = "--by-department" in argv, [item for item in argv if item != "--by-department"]
    resume, argv = take_option(argv, "--resume")
    if resume is None:
        seeds, argv = take_option(argv, "--seeds")
        plan, folder = compare_plan.make_plan(argv, seeds or "3"), None
        root = Path(next(iter(plan.configs.values())).output)
    else:
        output, argv = take_option(argv, "--output")
        if argv:
            raise InputError(
                f"{argv[0]}: got it with --resume, wanted --output or --by-department; start a new comparison"
            )
        folder = compare_plan.find_comparison(resume, Path(output or "lightning_logs"))
        plan = compare_plan.read_plan(folder)
    quiet()
    from fl_lightning.runs.comparison import report
    from fl_lightning.runs.comparison import runner as runs

    hush()
    new = folder is None
    if folder is None:
        runs.check_plan(plan, root)
        folder = compare_plan.create(plan, root)
    again = f"fl-lightning compare --resume {shlex.quote(str(folder))}"
    try:
        comparison = runs.run_all(folder, plan, new=new)
    except signals.Stopped as stop:
        print(f"stopped; all that was finished is saved: {again} continues", file=sys.stderr)
        return 128 + stop.number
    report.show(folder, comparison, by_department=by_department)
    if comparison.failed:
        raise RunError(f"{len(comparison.failed)} of the runs, see above; {again} tries them again")
    return 0
