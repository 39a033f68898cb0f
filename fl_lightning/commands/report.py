"""``report --run RUN``: pictures of a run and one page that holds them all."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.console import hush, quiet, take_number, take_option
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.run_folder import find_run_folder

OPTIONS = ("--run", "--output", "--samples")
HELP = """usage: fl-lightning report --run RUN [--output DIR] [--samples N]

Draws a run and writes RUN/report/index.html, one file that needs no network, and the pictures beside it.

RUN is a run folder, or 'last' under --output.
--samples N   answers of base and adapter to so many held-out prompts of each department (3); they are kept in
              RUN/report/samples.json. With 0 no model is loaded, and no record of a department is in the page."""


def run(argv: list[str]) -> int:
    """Write the report of a run and say where it is."""
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return 0
    name, argv = take_option(argv, "--run")
    output, argv = take_option(argv, "--output")
    count, argv = take_number(argv, "--samples", 0)
    if argv:
        raise InputError(f"unknown argument {argv[0]}{nearest(argv[0], OPTIONS)}")
    if name is None:
        raise InputError("report: no --run, wanted --run RUN with a run folder or 'last'")
    folder = find_run_folder(name, Path(output or "lightning_logs"))
    quiet()
    from fl_lightning.report.page import write_report

    hush()
    page = write_report(folder, count=3 if count is None else count)
    print(f"The report is in {page}")
    return 0
