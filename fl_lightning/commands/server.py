"""``server``: a run whose clients are on other machines, or its continuation with ``--resume last|RUN``."""

from __future__ import annotations

from fl_lightning.commands.fit import config_and_folder
from fl_lightning.console import hush, quiet


def run(argv: list[str]) -> int:
    """Run the command."""
    config, folder = config_and_folder(argv, "server")
    quiet()
    from fl_lightning.network.coordinator import run as server

    hush()
    server.serve(config, resume=folder)
    return 0
