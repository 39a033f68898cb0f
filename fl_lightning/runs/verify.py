"""Checks the chain of a run, its signature, and the run's files against the chain; needs neither base nor records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint
from fl_lightning.provenance import salts
from fl_lightning.provenance.certificate import check_certificate
from fl_lightning.provenance.chain import Chain, ChainError, read_ledger
from fl_lightning.provenance.chain_check import check_chain, check_signature
from fl_lightning.provenance.digests import states_digest
from fl_lightning.provenance.run_files import check_files
from fl_lightning.provenance.site_signatures import check_site_signatures
from fl_lightning.storage.run_folder import is_locked
from fl_lightning.storage.run_layout import CERTIFICATE, CHECKPOINTS, HISTORY, LEDGER, LEDGER_SECRET


@dataclass(frozen=True)
class Verified:
    """A chain that holds.

    Attributes:
        chain: its lines.
        public_key: that has signed it, as 64 hexadecimal digits; None if it is unsigned.
        certificate: of what the run has forgotten, if it was checked.
        site_keys: {client_id: public key} of the sites that have signed their updates; empty for a run in one process.
    """

    chain: Chain
    public_key: str | None
    certificate: dict[str, Any] | None = None
    site_keys: dict[str, str] = field(default_factory=dict)


def verify_chain(
    run_folder: Path, public_key: str | None = None, site_keys: Mapping[str, str] | None = None
) -> Verified:
    """Check a run's chain and its signatures; of the run's files only ``ledger.jsonl`` is read.

    Args:
        run_folder: of the run.
        public_key: that must have signed it; None accepts the one that it names, or no signature.
        site_keys: {client_id: public key} with which the sites must have signed their updates; None accepts those that
            the first line names, and a run in one process.

    Raises:
        InputError: if the run has no ledger.
        ChainError: naming the first line that is not right.
    """
    path = run_folder / LEDGER
    data = read_ledger(path)
    if is_locked(run_folder):
        raise ChainError(f"{run_folder}: not finished: a process is writing to the run; verify it when it is done")
    chain = check_chain(data, str(path))
    of_sites = check_site_signatures(chain, site_keys, str(path))
    return Verified(chain, check_signature(chain, public_key, str(path)), site_keys=of_sites)


def verify_run(run_folder: Path, public_key: str | None = None, site_keys: Mapping[str, str] | None = None) -> Verified:
    """Check a run's chain, its signature, all files that the last line names, and the certificate if there is one.

    Args:
        run_folder: of the run.
        public_key: see `verify_chain`.
        site_keys: see `verify_chain`.

    Raises:
        InputError: if the run has no ledger.
        ChainError: naming the first line or file that is not right.
    """
    verified = verify_chain(run_folder, public_key, site_keys)
    chain = verified.chain
    assert chain.end is not None  # check_chain expects it
    if (run_folder / LEDGER_SECRET).exists() and _run_id(run_folder) != chain.start["run"]:
        raise ChainError(f"{run_folder / LEDGER_SECRET}: changed, or another run's: it does not give the run's id")
    check_files(run_folder, chain.end)
    _check_states(run_folder, chain)
    if not (run_folder / CERTIFICATE).exists():
        return verified
    return replace(verified, certificate=check_certificate(run_folder, chain, public_key))


def verify_certificate(
    folder: Path, run_folder: Path | None = None, public_key: str | None = None
) -> tuple[Path, Verified]:
    """Check a certificate and the chains of both runs; of the new run only ``ledger.jsonl`` is read.

    Args:
        folder: of the certificate, or its ``certificate.json``.
        run_folder: of the run that it is about; None takes the folder around that of the certificate.
        public_key: that must have signed both; None accepts those that they name, or no signature.

    Returns:
        The run's folder, and its chain and certificate.

    Raises:
        InputError: if there is no certificate or no ledger.
        ChainError: naming the first thing that is not right.
    """
    if not folder.exists():
        raise InputError(f"{folder}: expected a certificate, as forget writes it into a run, got no such file")
    folder = folder if folder.is_dir() else folder.parent
    run_folder = run_folder or folder.resolve().parent
    verified = verify_chain(run_folder, public_key)
    certificate = check_certificate(run_folder, verified.chain, public_key, folder=folder)
    return run_folder, Verified(verified.chain, verified.public_key, certificate)


def _run_id(run_folder: Path) -> str | None:
    try:
        return salts.run_id(salts.read_secret(run_folder))
    except InputError as error:
        raise ChainError(f"changed: {error}") from error


def _check_states(run_folder: Path, chain: Chain) -> None:
    """Check that the states in checkpoints are those of their rounds' lines, and the rows those of the last of them.

    Raises:
        ChainError: naming the first that is not.
    """
    folders = checkpoints(run_folder)
    for number, folder in folders.items():
        try:
            state, _ = load_checkpoint(folder, keep=lambda _: {})  # clients' states need not stay in memory
        except InputError as error:
            raise ChainError(f"changed: {error}") from error
        line = chain.rounds.get(number, chain.start)
        for kind, states in (("departments", state.departments), ("groups", state.groups)):
            expected, actual = line["states"].get(kind, {}), states_digest(states)
            if expected != actual:
                names = [*sorted(actual), *sorted(expected)]
                first = next(name for name in names if actual.get(name) != expected.get(name))
                raise ChainError(
                    f"{folder}: changed: {first} does not have the state of line {number + 1} in {LEDGER}, or that "
                    "line was not written by the run"
                )
    if folders:
        _check_history(run_folder / CHECKPOINTS / HISTORY, list(folders.values())[-1])


def _check_history(path: Path, newest: Path) -> None:
    """Check that nothing was added to the rows after the last checkpoint."""
    from fl_lightning.federation.checkpoint_schema import CheckpointHeader
    from fl_lightning.federation.history import HistoryMark
    from fl_lightning.storage.run_layout import CHECKPOINT_FACTS

    mark = CheckpointHeader.read(newest / CHECKPOINT_FACTS).history
    if isinstance(mark, HistoryMark) and path.stat().st_size != mark.bytes:
        raise ChainError(f"{path}: changed: expected {mark.bytes:,} bytes, got {path.stat().st_size:,}")
