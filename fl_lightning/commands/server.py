"""``server``: a run whose clients are on other machines, or its continuation with ``--resume last|RUN``."""

from __future__ import annotations

from fl_lightning.commands.fit import config_and_folder
from fl_lightning.console import setup_logging, silence_libraries


def run(argv: list[str]) -> int:
    """Run the command."""
    config, folder = config_and_folder(argv, "server")
    setup_logging()
    from fl_lightning.network.coordinator import run as server

    silence_libraries()
    server.serve(config, resume=folder)
    return 0
