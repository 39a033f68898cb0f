"""``certs``: certificates and keys for a run over several machines, and the key that signs ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.errors import InputError
from fl_lightning.network.tls import DEFAULT_HOSTS, add_site, list_sites, make_certificates, public_keys


def make_parser() -> Parser:
    """The options."""
    description = (
        "Make certificates and keys for a run over several machines, or the key that signs the ledgers of runs."
    )
    parser = Parser("certs", description)
    sites = parser.add_mutually_exclusive_group(required=True)
    sites.add_argument("--sites", nargs="+", metavar="DEPARTMENT/CLIENT", help="sites that get a key")
    sites.add_argument("--config", type=Path, metavar="FILE", help="of a run: a key for every client in its data")
    sites.add_argument("--add", nargs="+", metavar="DEPARTMENT/CLIENT", help="further sites for the folder --out")
    help_ = "instead: make the operator's Ed25519 key FILE (0600), for ledger.sign_key, and FILE.pub, for verify"
    sites.add_argument("--sign-key", type=Path, metavar="FILE", help=help_)
    help_ = "a new folder, or with --add an existing one (default: certs)"
    parser.add_argument("--out", type=Path, default=Path("certs"), metavar="DIR", help=help_)
    help_ = "host names and IP addresses of the server (default: localhost 127.0.0.1)"
    parser.add_argument("--hosts", nargs="+", metavar="HOST", help=help_)
    parser.add_argument("--days", type=at_least(1), metavar="N", help="validity of the certificates (default: 365)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        InputError: for bad arguments; nothing is written then.
    """
    args = make_parser().read(argv)
    if args.sign_key is not None:
        if args.hosts or args.days is not None:
            raise InputError("certs: expected --sign-key without --hosts and --days (the key has neither), got one")
        _make_sign_key(args.sign_key)
        return 0
    if args.add:
        if args.hosts or args.days is not None:
            raise InputError("certs: expected --add without --hosts and --days (a site's key has neither), got one")
        for site in args.add:
            add_site(args.out, site)
        _show(args.out, args.add)
        return 0
    sites = args.sites
    if args.config is not None:
        from fl_lightning.config.parsing import parse_config

        data = parse_config(["--config", str(args.config)]).data
        sites = list_sites(data.root, data.max_clients)
    days = 365 if args.days is None else args.days
    _show(args.out, make_certificates(args.out, sites, args.hosts or DEFAULT_HOSTS, days))
    return 0


def _make_sign_key(path: Path) -> None:
    from fl_lightning.provenance.signing import fingerprint, load_public_key, new_key

    public = new_key(path)
    print(
        f"{path}: Ed25519 key {fingerprint(load_public_key(public))}; keep it from everybody. Runs with ledger.sign_key"
    )
    print("(fit --sign-key) are signed with it, and what a site sends, if it is the site's sign.key.")
    print(f"{public}: hand it, on a channel that you trust, to those who run fl-lightning verify --public-key,")
    print("or to the other sites of the department, for their network.roster.")


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
    print("Hand them over on a channel that you trust, into the same places under each site's network.certificates.")
