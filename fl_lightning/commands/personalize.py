"""``personalize --run RUN``: what each client takes, chosen by its selection records."""

from __future__ import annotations

import sys
from pathlib import Path

from fl_lightning import launch, openmp
from fl_lightning.commands.parser import Parser, not_empty
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.storage.forgotten import check_not_forgotten
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import NEWCOMERS, PERSONAL, PERSONAL_EVALUATION

DESCRIPTION = f"""Choose for every client of a finished run between its own adapter and those of its department, its
cluster and all clients, or mix their predictions, by records that have not trained (data.selection_fraction). Clients'
own adapters and that of all are trained first, as runs in RUN/{PERSONAL}; {PERSONAL_EVALUATION} has the figures. With
--data, clients and departments that were not in the run choose between its adapters instead, by their training records
and without training: {NEWCOMERS} has the figures, RUN/{PERSONAL}/newcomers an adapter for each."""


def run(argv: list[str]) -> int:
    """Personalize."""
    parser = Parser("personalize", DESCRIPTION)
    parser.takes_run()
    parser.add_argument("--data", type=not_empty, metavar="DIR", help="folder of departments with newcomers' records")
    args = parser.read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    check_not_forgotten(folder)
    setup_logging()
    from rich.console import Console

    with launch.importing():
        openmp.spin_while_alone()
        from fl_lightning.runs import newcomers, personalize
    from fl_lightning.storage.run_layout import RECEIVED

    silence_libraries()
    console = None if sys.stderr.isatty() else Console(quiet=True)
    if args.data is not None:
        newcomers.show(newcomers.personalize_newcomers(folder, args.data, console=console))
        return 0
    if (folder / RECEIVED).is_dir():
        from fl_lightning.network.site.personalize import personalize_site  # it imports the network's libraries

        result = personalize_site(folder, console=console)
    else:
        result = personalize.personalize(folder, console=console)
    personalize.show(result)
    return 0
