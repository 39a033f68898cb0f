"""``client --department D --client C``: take part in a server's run with the records here."""

from __future__ import annotations

from fl_lightning import launch
from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import InputError


def run(argv: list[str]) -> int:
    """Take part until the server's run ends."""
    if "--help" in argv or "-h" in argv:
        print("fl-lightning client --department D --client C [OPTIONS]\n")
    parser = Parser("client", add_help=False)
    parser.add_argument("--department")
    parser.add_argument("--client")
    args, rest = parser.read_known(argv)
    config = parse_config(rest, "fl_lightning client")
    if not args.department or not args.client:
        missing = "--client" if args.department else "--department"
        raise InputError(f"client: expected --department and --client, such as hr and client_0, got no {missing}")
    with launch.started(config.fabric.devices, ["client", *argv]):
        setup_logging()
        from fl_lightning.network.site import run as client

        silence_libraries()
        client.run_client(config, args.department, args.client)
    return 0
