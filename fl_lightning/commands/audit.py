"""``audit --run RUN``: what an attacker could learn from a run's adapters."""

from __future__ import annotations

from pathlib import Path

from fl_lightning import openmp
from fl_lightning.commands.parser import Parser, at_least, not_empty, number_above
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import AUDIT

DESCRIPTION = f"""Attack the adapters of a finished run. A run of fit --audit.canaries N has N canaries for each client,
each trained on by a fair coin; how many coins are guessed right gives a lower bound on epsilon, beside the accountant's
upper one. Every run is tested for membership: how well losses tell trained records from held-out ones. The figures are
in {AUDIT} of the run."""


def run(argv: list[str]) -> int:
    """Audit."""
    parser = Parser("audit", DESCRIPTION)
    parser.takes_run()
    parser.add_argument("--reference", type=not_empty, metavar="DIR", help="an adapter to compare losses with as well")
    parser.add_argument(
        "--delta", type=number_above(0, 1), metavar="X", help="of the bounds (federation.privacy.delta)"
    )
    parser.add_argument(
        "--max-records", type=at_least(1), default=256, metavar="N", help="tested records of each client (256)"
    )
    args = parser.read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    setup_logging()
    openmp.spin_while_alone()
    from fl_lightning.runs.audit import AuditRequest, audit
    from fl_lightning.runs.audit_table import show

    silence_libraries()
    reference = None if args.reference is None else Path(args.reference)
    show(audit(AuditRequest(folder, reference, args.delta, args.max_records)))
    return 0
