"""``verify``: check the chain of a run and its files, its certificate, or which rounds have a client's records."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.commands.parser import Parser, not_empty
from fl_lightning.errors import InputError, RunError
from fl_lightning.storage.run_folder import find_run_folder, named_folder
from fl_lightning.storage.run_layout import LEDGER

if TYPE_CHECKING:
    from fl_lightning.runs.verify import Verified

USAGE = """fl-lightning verify --run RUN [--public-key FILE]
       fl-lightning verify --certificate FILE [--run RUN] [--public-key FILE]"""
DESCRIPTION = """Check that a finished run is as its ledger (ledger.jsonl) says. Base model and records are not needed.
Nothing is written into the run. Exit code 0: all holds; 1: the message names the first line or file that is not
right."""


def run(argv: Sequence[str]) -> int:
    """Verify."""
    args = make_parser().read(argv)
    if args.run is None and args.certificate is None:
        raise InputError("verify: expected --run with a run folder or 'last', or --certificate, got neither")
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
    help_ = "a certificate of forgetting, with the ledger of --run or of the folder around it"
    parser.add_argument("--certificate", type=_path, metavar="FILE", help=help_)
    return parser


def _verify(args: Namespace) -> int:
    from fl_lightning.provenance.signing import load_public_key
    from fl_lightning.runs.verify import verify_certificate, verify_run

    public_key = None if args.public_key is None else load_public_key(args.public_key)
    folder = None if args.run is None else _run_folder(args.run, Path(args.output))
    if args.certificate is not None:
        folder, verified = verify_certificate(args.certificate, folder, public_key)
        _show_chain(folder, verified, args.public_key)
        _show_certificate(verified)
        return 0
    assert folder is not None
    verified = verify_run(folder, public_key)
    _show_chain(folder, verified, args.public_key)
    _show_files(verified)
    _show_certificate(verified)
    return 0


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
