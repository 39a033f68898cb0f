"""``fit``: train, or continue a run with ``--resume last|RUN``."""

from __future__ import annotations

from pathlib import Path

from fl_lightning import launch
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import hush, quiet, take_option
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG


def run(argv: list[str]) -> int:
    """Train."""
    config, folder = config_and_folder(argv, "fit")
    with launch.started(config.fabric.devices, ["fit", *argv]):
        quiet()
        from fl_lightning.runs.fit import fit

        hush()
        fit(config, resume=folder)
    return 0


def config_and_folder(argv: list[str], command: str) -> tuple[RunConfig, Path | None]:
    """(config, the run folder to go on with or None) of a command that trains."""
    if "--help" in argv or "-h" in argv:
        print(f"fl-lightning {command} [--resume last|RUN] [OPTIONS]\n")
    prog = f"fl_lightning {command}"
    resume, argv = take_option(argv, "--resume")
    if resume is None:
        return parse_config(argv, prog), None
    root = take_option(argv, "--output")[0] or parse_config(argv, prog).output
    folder = find_run_folder(resume, Path(root))
    # What the run was made with comes first, so that arguments given now win.
    return parse_config(["--config", str(folder / CONFIG), *argv], prog), folder
