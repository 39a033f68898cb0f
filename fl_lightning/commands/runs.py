"""``runs [--output DIR]``: list the runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from fl_lightning.commands.parser import Parser

DESCRIPTION = """List the version_N folders under --output: when each was last written to, whether it is finished,
running, interrupted or forgotten, mean evaluation loss before the first round and after the last, and clusters of
departments."""


def run(argv: list[str]) -> int:
    """List runs."""
    parser = Parser("runs", DESCRIPTION)
    parser.add_argument("--output", metavar="DIR", default="lightning_logs", help="(default: lightning_logs)")
    parser.add_argument("--json", action="store_true", help="for scripts")
    args = parser.read(argv)
    from fl_lightning.runs import listing

    runs = listing.list_runs(Path(args.output))
    if args.json:
        print(json.dumps([run.as_json() for run in runs], indent=1))
        return 0
    from rich.console import Console

    console = Console()
    if not runs:
        console.print(f"No run in {args.output}; 'fl-lightning fit' makes one.", markup=False, highlight=False)
        return 0
    console.print(listing.table(runs, args.output))
    if waiting := [run.name for run in runs if run.status == "interrupted"]:
        folder = Path(args.output) / waiting[-1]
        console.print(f"fl-lightning fit --resume {folder} continues", markup=False, highlight=False, soft_wrap=True)
    return 0
