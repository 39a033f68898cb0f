"""``verify``: check the chain of a run and its files, its certificate, or which rounds have a client's records."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.commands.parser import Parser, at_least, not_empty
from fl_lightning.errors import InputError, RunError
from fl_lightning.storage.run_folder import find_run_folder, named_folder
from fl_lightning.storage.run_layout import CONFIG, LEDGER

if TYPE_CHECKING:
    from fl_lightning.config import RunConfig
    from fl_lightning.runs.verify import Verified

USAGE = """fl-lightning verify --run RUN [--public-key FILE] [--site-keys FILE] [--replay ROUND ...]
       fl-lightning verify --certificate FILE [--run RUN] [--public-key FILE]
       fl-lightning verify --run RUN --client DEPARTMENT/CLIENT --salt FILE [--records PATH] [--public-key FILE]
       fl-lightning verify --run RUN --client DEPARTMENT/CLIENT --write-salt FILE"""
DESCRIPTION = """Check that a finished run is as its ledger (ledger.jsonl) says. Base model and records are not needed.
Nothing is written into the run. Exit code 0: all holds; 1: the message names the first line or file that is not
right. --replay also computes rounds again, which needs base and records, and compares them with the ledger.
With --client: whether this client's records are in the ledger, and in which rounds; nothing about others'."""


def run(argv: Sequence[str]) -> int:
    """Verify."""
    args = make_parser().read(argv)
    if args.run is None and args.certificate is None:
        raise InputError("verify: expected --run with a run folder or 'last', or --certificate, got neither")
    _check_client_options(args)
    if args.site_keys is not None and (args.certificate is not None or args.client is not None):
        raise InputError("verify: expected --site-keys with --run and without --certificate and --client")
    from fl_lightning.provenance.chain import ChainError

    try:
        return _verify(args)
    except ChainError as error:
        raise RunError(str(error)) from error


def make_parser() -> Parser:
    """The options."""
    parser = Parser("verify", DESCRIPTION, usage=USAGE)
    parser.takes_run(required=False)
    help_ = "the operator's Ed25519 key (OpenSSH or PEM) that must have signed the run"
    parser.add_argument("--public-key", type=_path, metavar="FILE", help=help_)
    help_ = (
        "the sites' keys: a line for each, such as hr/client_0 ssh-ed25519 AAAA…, that must have signed their updates"
    )
    parser.add_argument("--site-keys", type=_path, metavar="FILE", help=help_)
    help_ = "a certificate of forgetting, with the ledger of --run or of the folder around it"
    parser.add_argument("--certificate", type=_path, metavar="FILE", help=help_)
    help_ = "rounds to compute again, each from the checkpoint before it or an earlier one"
    parser.add_argument("--replay", type=at_least(1), nargs="+", metavar="ROUND", help=help_)
    client = parser.add_argument_group("one client's records")
    client.add_argument("--client", type=not_empty, metavar="DEPARTMENT/CLIENT", help="whose records are looked for")
    client.add_argument("--salt", type=_path, metavar="FILE", help="the client's salt, which the operator gave to it")
    help_ = "the client's folder or file of records (default: those in the run's data)"
    client.add_argument("--records", type=_path, metavar="PATH", help=help_)
    help_ = "for the operator: write the client's salt to a new file (0600), to be handed to this client only"
    client.add_argument("--write-salt", type=_path, metavar="FILE", help=help_)
    here = parser.add_argument_group("where base and records are on this machine, if not where the run's config says")
    here.add_argument("--model", type=not_empty, metavar="NAME_OR_PATH", help="the base model")
    here.add_argument("--data", type=not_empty, metavar="DIR", help="the folder of departments")
    return parser


def _verify(args: Namespace) -> int:
    from fl_lightning.provenance.signing import load_public_key
    from fl_lightning.provenance.site_signatures import read_site_keys
    from fl_lightning.runs.verify import verify_certificate, verify_run

    public_key = None if args.public_key is None else load_public_key(args.public_key)
    folder = None if args.run is None else _run_folder(args.run, Path(args.output))
    if args.certificate is not None:
        folder, verified = verify_certificate(args.certificate, folder, public_key)
        _show_chain(folder, verified, args.public_key)
        _show_certificate(verified)
        return 0
    assert folder is not None
    if args.client is not None:
        return _verify_client(args, folder, public_key)
    verified = verify_run(folder, public_key, None if args.site_keys is None else read_site_keys(args.site_keys))
    _show_chain(folder, verified, args.public_key)
    _show_sites(verified, args.site_keys)
    _show_files(verified)
    _show_certificate(verified)
    if args.replay:
        _replay(args, folder, verified)
    return 0


def _check_client_options(args: Namespace) -> None:
    if args.replay and (args.run is None or args.certificate or args.client):
        raise InputError("verify: expected --replay with --run and without --certificate and --client")
    client_options = ("salt", "records", "write_salt", *(() if args.replay else ("model", "data")))
    given = [f"--{name.replace('_', '-')}" for name in client_options if getattr(args, name) is not None]
    if args.client is None and given:
        other = " or --replay" if given[0] in ("--model", "--data") else ""
        raise InputError(f"verify: expected --client{other} with {given[0]}, got none")
    if args.client is None:
        return
    if (args.salt is None) == (args.write_salt is None):
        raise InputError("verify: expected --client with either --salt or --write-salt")
    if args.write_salt is not None and len(given) > 1:
        raise InputError(f"verify: expected --write-salt without {next(o for o in given if o != '--write-salt')}")
    if args.run is None or args.certificate is not None:
        raise InputError("verify: expected --client with --run and without --certificate")


def _verify_client(args: Namespace, folder: Path, public_key: str | None) -> int:
    from fl_lightning.console import setup_logging, silence_libraries

    setup_logging()
    from fl_lightning.runs.inclusion import show_inclusion, write_salt
    from fl_lightning.runs.verify import verify_chain

    silence_libraries()
    if args.write_salt is not None:
        write_salt(folder, args.client, args.write_salt)
        print(
            f"{args.write_salt}: hand it to {args.client} and to nobody else: with it, guesses of records can be tried"
        )
        return 0
    verified = verify_chain(folder, public_key)
    config = _config(args, folder)
    rounds = show_inclusion(folder, config, verified.chain, args.client, args.salt, args.records)
    _show_chain(folder, verified, args.public_key)
    numbers, count = ", ".join(map(str, rounds)), len(verified.chain.rounds)
    print(f"{args.client}: these records are in the ledger, in {len(rounds)} of {count} rounds: {numbers}")
    return 0


def _replay(args: Namespace, folder: Path, verified: Verified) -> None:
    from fl_lightning.console import setup_logging, silence_libraries

    setup_logging()
    from fl_lightning.runs.replay import replay

    silence_libraries()
    replayed = replay(folder, _config(args, folder), verified.chain, args.replay)
    compared = "updates, records, weights and states" if replayed.has_secret else "weights, clusters and states"
    print(f"computed again: rounds {', '.join(map(str, replayed.rounds))}: {compared} are those of the ledger")
    if not replayed.has_secret:
        print("updates and records were not compared: that needs ledger_secret, which the operator keeps")


def _config(args: Namespace, folder: Path) -> RunConfig:
    """The run's config, with the places of base and records on this machine."""
    from fl_lightning.config.parsing import parse_config

    model = [] if args.model is None else ["--model.name_or_path", args.model]
    data = [] if args.data is None else ["--data", args.data]
    return parse_config(["--config", str(folder / CONFIG), *model, *data])


def _path(text: str) -> Path:
    """A type for ``add_argument``."""
    return Path(not_empty(text))


def _run_folder(run: str, root: Path) -> Path:
    """The run's folder, which may have nothing but a ledger.

    Raises:
        InputError: if there is no such run.
    """
    folder = named_folder(run, root)
    return folder if run != "last" and (folder / LEDGER).exists() else find_run_folder(run, root)


def _show_chain(folder: Path, verified: Verified, key_file: Path | None) -> None:
    from fl_lightning.provenance.signing import fingerprint

    chain = verified.chain
    print(f"{folder / LEDGER}: {len(chain.lines)} lines of {len(chain.rounds)} rounds hold; the last one's SHA-256 is")
    print(f"  {chain.head}")
    if verified.public_key is None:
        print(
            "not signed: nothing was changed by accident; whoever can write to the run could have made all of it anew."
        )
        print("Compare the SHA-256 with one that was noted when the run ended, or sign runs with ledger.sign_key.")
    elif key_file is None:
        print(f"signed with the key {fingerprint(verified.public_key)}, which the ledger itself names: this proves")
        print("integrity only. --public-key FILE proves who has signed.")
    else:
        print(f"signed with the key {fingerprint(verified.public_key)} in {key_file}")


def _show_sites(verified: Verified, keys_file: Path | None) -> None:
    if not verified.site_keys:
        return
    whose = (
        "the ledger itself names: --site-keys FILE proves that they are the sites'" if keys_file is None else keys_file
    )
    which = "which" if keys_file is None else "in"
    print(f"every update is signed by its site, with the keys of {len(verified.site_keys)} sites {which} {whose}")


def _show_files(verified: Verified) -> None:
    from fl_lightning.provenance.run_files import NOT_COVERED

    end = verified.chain.lines[-1]
    counts = [f"{len(end[kind])} {name}" for kind, name in
              (("files", "files"), ("folders", "folders of adapters"), ("checkpoints", "checkpoints"))]  # fmt: skip
    print(f"{', '.join(counts)} are as they were when the run ended")
    print("not covered:")
    for files, reason in NOT_COVERED:
        print(f"  {files}: {reason}")


def _show_certificate(verified: Verified) -> None:
    if (certificate := verified.certificate) is None:
        return
    taken = certificate["taken_out"]
    names = [*taken.get("departments", []), *taken.get("clients", [])]
    names += [f"{count} records of {client_id}" for client_id, count in taken.get("records", {}).items()]
    print(f"certificate: holds; from round {certificate['first_round']} on, the run is without {', '.join(names)}")
    if "signature" not in certificate:
        print("the certificate is not signed")
