"""``client --department D --client C``: take part in a server's run with the records here."""

from __future__ import annotations

from fl_lightning import launch
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import hush, quiet, take_option
from fl_lightning.errors import InputError


def run(argv: list[str]) -> int:
    """Run the command."""
    if "--help" in argv or "-h" in argv:
        print("fl-lightning client --department D --client C [OPTIONS]\n")
    command = ["client", *argv]
    department, argv = take_option(argv, "--department")
    name, argv = take_option(argv, "--client")
    config = parse_config(argv, "fl_lightning client")
    if department is None or name is None:
        missing = "--department" if department is None else "--client"
        raise InputError(f"client: expected --department and --client, such as hr and client_0, got no {missing}")
    with launch.started(config.fabric.devices, command):
        quiet()
        from fl_lightning.network.site import run as client

        hush()
        client.run_client(config, department, name)
    return 0
