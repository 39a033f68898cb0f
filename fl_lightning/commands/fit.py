"""``fit``: train, or continue a run with ``--resume last|RUN``."""

from __future__ import annotations

from pathlib import Path

from fl_lightning import processes
from fl_lightning.arguments import parse_config
from fl_lightning.run_folder import find_run_folder
from fl_lightning.terminal import hush, quiet, take_option


def run(argv: list[str]) -> int:
    """Train."""
    if "--help" in argv or "-h" in argv:
        print("fl-lightning fit [--resume last|RUN] [OPTIONS]\n")
    given = ["fit", *argv]
    resume, argv = take_option(argv, "--resume")
    if resume is None:
        config, folder = parse_config(argv), None
    else:
        root = take_option(argv, "--output")[0] or parse_config(argv).output
        folder = find_run_folder(resume, Path(root))
        # What the run was made with comes first, so that arguments given now win.
        config = parse_config(["--config", str(folder / "config.yaml"), *argv])
    with processes.started(config.fabric.devices, given):
        quiet()
        from fl_lightning import run as runs

        hush()
        runs.fit(config, resume=folder)
    return 0
