"""``fit``: train, or continue a run with ``--resume last|RUN``."""

from __future__ import annotations

from pathlib import Path

from fl_lightning import launch, openmp
from fl_lightning.commands.parser import Parser, not_empty
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.storage.forgotten import check_not_forgotten
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG


def run(argv: list[str]) -> int:
    """Train."""
    config, folder = config_and_folder(argv, "fit")
    with launch.started(config.fabric.devices, ["fit", *argv]):
        setup_logging()
        with launch.importing():
            openmp.spin_while_alone()
            from fl_lightning.runs.fit import fit

        silence_libraries()
        fit(config, resume=folder)
    return 0


def config_and_folder(argv: list[str], command: str) -> tuple[RunConfig, Path | None]:
    """(config, the run folder to resume or None) of a command that trains."""
    if "--help" in argv or "-h" in argv:
        print(f"fl-lightning {command} [--resume last|RUN] [OPTIONS]\n")
    prog = f"fl_lightning {command}"
    parser = Parser(command, add_help=False)
    parser.add_argument("--resume", type=not_empty)
    args, argv = parser.read_known(argv)
    if args.resume is None:
        return parse_config(argv, prog), None
    parser.add_argument("--output", type=not_empty)
    root = parser.read_known(argv)[0].output or parse_config(argv, prog).output
    folder = find_run_folder(args.resume, Path(root))
    check_not_forgotten(folder)
    # The run's own config comes first, so that arguments given now override it.
    return parse_config(["--config", str(folder / CONFIG), *argv], prog), folder
