"""``report --run RUN``: one HTML page about a run, with pictures."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.storage.run_folder import find_run_folder

DESCRIPTION = """Write RUN/report/index.html about a run, one file that needs no network, and its pictures beside it."""


def run(argv: list[str]) -> int:
    """Write the report of a run and print its path."""
    parser = Parser("report", DESCRIPTION)
    parser.takes_run()
    help_ = """let the base model and the adapter answer N held-out prompts of each department (3); the answers are kept
        in RUN/report/samples.json. With 0 no model is loaded, and the page contains no record of a department"""
    parser.add_argument("--samples", type=at_least(0), default=3, metavar="N", help=help_)
    args = parser.read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    setup_logging()
    from fl_lightning.report.page import write_report

    silence_libraries()
    print(f"The report is in {write_report(folder, count=args.samples)}")
    return 0
