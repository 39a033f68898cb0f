"""``certs``: make certificates and keys for a trial run, and print who needs which."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fl_lightning.errors import InputError
from fl_lightning.network.tls import DEFAULT_HOSTS, add_site, list_sites, make_certificates, public_keys


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"certs: {message}; fl-lightning certs --help lists the options")


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = _Parser(prog="fl-lightning certs", allow_abbrev=False, description="Make keys for a network run.")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--sites", nargs="+", metavar="DEPARTMENT/CLIENT", help="sites that get a key")
    whose.add_argument("--config", type=Path, help="YAML file of a run; all clients in its data folder get a key")
    whose.add_argument("--add", nargs="+", metavar="DEPARTMENT/CLIENT", help="further sites, for the folder of --out")
    parser.add_argument("--out", type=Path, default=Path("certs"), help="folder, new unless with --add; default certs")
    parser.add_argument("--hosts", nargs="+", help="names and IP addresses of the server; default localhost 127.0.0.1")
    parser.add_argument("--days", type=int, help="how long the certificates hold; default 365")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        InputError: for bad arguments; nothing is written then.
    """
    given = make_parser().parse_args(argv)
    if given.add:
        if given.hosts or given.days is not None:
            raise InputError(
                "certs: expected --add without --hosts and --days, got one of them: a site's key has neither"
            )
        for site in given.add:
            add_site(given.out, site)
        _show(given.out, given.add)
        return 0
    sites = given.sites
    if given.config is not None:
        from fl_lightning.config.parsing import parse_config

        data = parse_config(["--config", str(given.config)]).data
        sites = list_sites(data.root, data.clients_per_dept)
    days = 365 if given.days is None else given.days
    _show(given.out, make_certificates(given.out, sites, given.hosts or DEFAULT_HOSTS, days))
    return 0


def _show(folder: Path, sites: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{folder}: sites: {len(public_keys(folder))}")  # no markup in a path
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("hand to", "what", "keep from"):
        table.add_column(column, overflow="fold")
    table.add_row("the server", "ca.pem, server/, sites/*/*/site.pub", "everybody else: server/server.key")
    for site in sites:
        table.add_row(site, f"ca.pem, sites/{site}/site.key", "everybody else, the server too: site.key")
    table.add_row("nobody", "authority/ca.key", "every machine on the network; it makes certificates that sites trust")
    Console().print(table)
    print("Copy each over a channel that you trust, with the same folders, into a separate one (network.certificates).")
