"""A certificate of forgetting: what a run no longer has, from which round on, and the chains of both runs.

``certificate/`` in the folder of the new run has ``certificate.json``, the same as a page (``certificate.md``), and the
chain of the run before (``before.jsonl``). The new run's own chain is its ``ledger.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.provenance.chain import Chain, ChainError, read_ledger
from fl_lightning.provenance.chain_check import check_chain, signed_bytes
from fl_lightning.provenance.signing import fingerprint, is_signed, load_private_key, public_key_of, sign
from fl_lightning.storage.files import atomic_folder, read_json, write_bytes, write_json, write_text
from fl_lightning.storage.run_layout import CERTIFICATE, LEDGER

JSON, PAGE, BEFORE = "certificate.json", "certificate.md", "before.jsonl"
FORMAT = "fl-lightning certificate of forgetting, version 1"


def write_certificate(
    run_folder: Path, before: Path, *, taken_out: Mapping[str, Any], first_round: int, sign_key: Path | None = None
) -> Path:
    """Write the certificate of a finished run that was made by `forget`.

    Args:
        run_folder: of the new run.
        before: folder of the run that had what was taken out.
        taken_out: ``clients``: ids; ``departments``: names; ``records``: {client_id: number of records}. Empty ones may
            be left out.
        first_round: the first round that was computed again; all rounds before it have the same states in both runs.
        sign_key: the operator's Ed25519 key; None leaves the certificate unsigned.

    Returns:
        The folder of the certificate.

    Raises:
        InputError: if one of the runs has no finished chain, or the key cannot be used.
        ChainError: if a chain is not right.
    """
    key = None if sign_key is None else load_private_key(sign_key)
    old = read_ledger(before / LEDGER)
    chains = {
        "before": check_chain(old, str(before / LEDGER)),
        "after": check_chain(read_ledger(run_folder / LEDGER), str(run_folder / LEDGER)),
    }
    values: dict[str, Any] = {
        "format": FORMAT,
        "taken_out": {name: taken_out[name] for name in ("clients", "departments", "records") if taken_out.get(name)},
        "first_round": first_round,
        **{name: _describe(chain) for name, chain in chains.items()},
    }
    if key is not None:
        values["public_key"] = public_key_of(key)
        values["signature"] = sign(key, signed_bytes(values))
    with atomic_folder(run_folder / CERTIFICATE) as temporary:
        write_bytes(temporary / BEFORE, old)
        write_json(temporary / JSON, values)
        write_text(temporary / PAGE, page(values))
    return run_folder / CERTIFICATE


def check_certificate(
    run_folder: Path, chain: Chain, public_key: str | None = None, *, folder: Path | None = None
) -> dict[str, Any]:
    """Check the certificate of a run against the chains of both runs.

    Args:
        run_folder: of the new run.
        chain: of it, from `check_chain`.
        public_key: that must have signed it; None accepts the one that it names, or no signature.
        folder: of the certificate; None takes that in the run.

    Returns:
        The certificate.

    Raises:
        ChainError: naming the first thing that is not right.
    """
    folder = folder or run_folder / CERTIFICATE
    path = folder / JSON
    try:
        values = read_json(path)
        text = (json.dumps(values, indent=1) + "\n").encode()
        before = check_chain(read_ledger(folder / BEFORE), str(folder / BEFORE))
        if path.read_bytes() != text or (folder / PAGE).read_bytes() != page(values).encode():
            raise ChainError(f"{folder}: changed: {JSON} and {PAGE} are not as they were written")
        _check_values(path, values, before, chain)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ChainError(f"{path}: changed or missing: {type(error).__name__}: {str(error)[:200]}") from error
    _check_signature(path, values, public_key)
    return dict(values)


def page(values: Mapping[str, Any]) -> str:
    """The certificate as a page in Markdown."""
    taken, before, after = values["taken_out"], values["before"], values["after"]
    records = [f"{count} records of {client_id}" for client_id, count in taken.get("records", {}).items()]
    names = [*(f"the department {name}" for name in taken.get("departments", [])), *taken.get("clients", []), *records]
    signed = (
        f"Signed with the Ed25519 key {values['public_key']}."
        if "public_key" in values
        else "Not signed: whoever can write to the run's folder could have made this page."
    )
    rows = [
        f"| {name} | `{before['departments'].get(name, 'none')}` | `{after['departments'].get(name, 'none')}` |"
        for name in sorted({*before["departments"], *after["departments"]})
    ]
    return "\n".join(
        [
            "# Certificate of forgetting",
            "",
            "Taken out:",
            "",
            *(f"- {name}" for name in names),
            "",
            f"Rounds before round {values['first_round']} have the same states in both runs; that round and all later "
            f"ones were computed again without them. The run before (`{before['run']}`) ended after round "
            f"{before['rounds']}, the run after (`{after['run']}`) after round {after['rounds']}.",
            "",
            "| department | SHA-256 of its last state before | after |",
            "|---|---|---|",
            *rows,
            "",
            f"Head of the chain before: `{before['head']}`. Head of the chain after: `{after['head']}`.",
            "",
            signed,
            "",
            "`fl-lightning verify --run RUN` checks both chains, this page and the run's files.",
            "",
        ]
    )


def _describe(chain: Chain) -> dict[str, Any]:
    """What a certificate says about a run."""
    states = chain.rounds[max(chain.rounds)]["states"] if chain.rounds else chain.start["states"]
    return {
        "run": chain.start["run"],
        "head": chain.head,
        "rounds": len(chain.rounds),
        "departments": states["departments"],
    }


def _check_values(path: Path, values: Mapping[str, Any], before: Chain, after: Chain) -> None:
    """Check what a certificate says against both chains.

    Raises:
        ChainError: if it does not fit.
        KeyError, TypeError, AttributeError: if it is of another form.
    """
    if values["format"] != FORMAT:
        raise ChainError(f"{path}: format: expected {FORMAT!r}, got {str(values['format'])[:60]!r}")
    for name, chain in (("before", before), ("after", after)):
        if values[name] != _describe(chain):
            raise ChainError(f"{path}: {name}: changed, or the chain is another run's")
    clients, departments = values["taken_out"].get("clients", []), values["taken_out"].get("departments", [])
    for number, line in after.rounds.items():
        for client_id in line["clients"]:
            if client_id in clients or client_id.split("/")[0] in departments:
                raise ChainError(f"{path}: {client_id}: expected it in no round, got round {number} of the ledger")
    for number in range(1, values["first_round"]):
        old, new = (chain.rounds[number]["states"]["departments"] for chain in (before, after))
        if different := sorted(name for name in old.keys() & new.keys() if old[name] != new[name]):
            raise ChainError(
                f"{path}: first_round: {different[0]} has another state in both runs after round {number} already"
            )


def _check_signature(path: Path, values: Mapping[str, Any], public_key: str | None) -> None:
    key, signature = values.get("public_key"), values.get("signature")
    if key is None and signature is None and public_key is None:
        return
    if not isinstance(key, str) or not isinstance(signature, str):
        raise ChainError(f"{path}: unsigned")
    if public_key not in (None, key):
        raise ChainError(f"{path}: signed by another key: {fingerprint(key)}")
    if not is_signed(key, signature, signed_bytes(dict(values))):
        raise ChainError(f"{path}: changed: its signature is not one of {key[:16]}… for this content")
