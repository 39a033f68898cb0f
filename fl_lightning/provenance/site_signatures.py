"""Signatures of sites under their updates: in a run between machines the server cannot invent or exchange one.

Each site has an Ed25519 key of its own. What it signs names the run, the round, the site, and the commitment to its
update, which it computes itself from what it sends and the salt that it gets with the task (see
`fl_lightning.provenance.salts`). Commitment and signature are in the round's line, and the sites' public keys in the
first one. So the signatures of a whole run can be checked without updates, salts or sites.

They do not show that nothing is missing: a server may say that a site did not reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fl_lightning.errors import InputError
from fl_lightning.provenance.chain import Chain, ChainError
from fl_lightning.provenance.digests import canonical, update_digest
from fl_lightning.provenance.salts import commit
from fl_lightning.provenance.signing import fingerprint, is_signed, parse_public_key
from fl_lightning.storage.files import read_text

SITES = "sites"
"""Key of the first line: {client_id: the site's public key, 64 hexadecimal digits}."""
_STATEMENT = "fl-lightning update of a site, version 1"


def update_commitment(
    salt: str, shared: Mapping[str, torch.Tensor], num_examples: int, num_tokens: int, losses: Iterable[float]
) -> str:
    """The commitment to an update of a site, as the ledger has it.

    Args:
        salt: of the client, 64 hexadecimal digits.
        shared: the tensors that the site sends, as the server decodes them.
        num_examples: of the update.
        num_tokens: of the update.
        losses: of the update.
    """
    return commit(salt, "update", update_digest(shared, num_examples, num_tokens, losses))


def signed_statement(run: str, round_num: int, client_id: str, commitment: str) -> bytes:
    """What a site signs.

    Example:
        >>> signed_statement("ab", 3, "hr/a", "cd")
        b'["fl-lightning update of a site, version 1","ab",3,"hr","a","cd"]'
    """
    department, client = client_id.split("/", 1)
    return canonical([_STATEMENT, run, round_num, department, client, commitment])


def check_site_signatures(
    chain: Chain, known_keys: Mapping[str, str] | None = None, name: str = "ledger.jsonl"
) -> dict[str, str]:
    """Check the signature of every update in a chain.

    Args:
        chain: from `check_chain`.
        known_keys: {client_id: public key} that the sites must have; None accepts those that the first line names.
        name: of the file, for messages.

    Returns:
        {client_id: public key} of the sites; empty for a run in one process.

    Raises:
        ChainError: naming the first line that is not right.
    """
    keys = chain.start.get(SITES, {})
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise ChainError(f"{name}:1: changed: {SITES}: expected the public key of each site")
    if known_keys is not None:
        _check_known(keys, known_keys, name)
    seen: set[tuple[str, int]] = set()
    for index, line in enumerate(chain.lines, start=1):
        entries = line["clients"].items() if line["kind"] == "round" else ()
        for client_id, entry in sorted(entries):
            if problem := _problem_with_entry(chain.start["run"], line["round"], client_id, entry, keys, seen):
                raise ChainError(f"{name}:{index}: {client_id}: {problem}")
    return dict(keys)


def read_site_keys(path: Path) -> dict[str, str]:
    """{client_id: public key, 64 hexadecimal digits} of the sites that somebody knows.

    Args:
        path: of a file with a line for each site: its client id and its key in OpenSSH's format, as in
            ``hr/client_0 ssh-ed25519 AAAA…``. Empty lines and such with ``#`` first are skipped.

    Raises:
        InputError: if the file cannot be read or has another form.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "a line with the public key of each site").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}:{number}"
        if len(words) < 3 or words[0].count("/") != 1:
            raise InputError(f"{where}: expected a client id and a key, such as hr/client_0 ssh-ed25519 AAAA…")
        if words[0] in keys:
            raise InputError(f"{where}: expected one key for {words[0]}, got a second one")
        keys[words[0]] = parse_public_key(" ".join(words[1:3]).encode(), where)
    if not keys:
        raise InputError(f"{path}: expected a line with the public key of each site, got none")
    return keys


def _check_known(keys: Mapping[str, str], known_keys: Mapping[str, str], name: str) -> None:
    if not keys:
        raise ChainError(f"{name}:1: unsigned: expected the public keys of sites, got a run without any")
    for client_id, key in sorted(keys.items()):
        if client_id not in known_keys:
            raise ChainError(f"{name}:1: {client_id}: expected a site whose key is known, got one whose key is not")
        if known_keys[client_id] != key:
            raise ChainError(
                f"{name}:1: {client_id}: expected the known key {fingerprint(known_keys[client_id])}, got {key[:16]}…"
            )


def _problem_with_entry(
    run: str, round_num: int, client_id: str, entry: Any, keys: Mapping[str, str], seen: set[tuple[str, int]]
) -> str | None:
    """Why the update of one client in one round is not signed as it must be; None if it is.

    A late one is signed for the round in which the client was asked (``asked``), and counts once; `seen` has what has
    counted so far.
    """
    if not isinstance(entry, dict):
        return "changed: expected what the round says about the client"
    commitment, signature = entry.get("update"), entry.get("signature")
    if commitment is None and signature is None:  # it was asked and is left out
        return None
    if not keys:
        return None if signature is None else f"changed: signed by a site, and line 1 has no {SITES}"
    if client_id not in keys or client_id.count("/") != 1:
        return f"unsigned: line 1 has no public key of it in {SITES}"
    if not isinstance(commitment, str) or not isinstance(signature, str):
        return "unsigned: expected the site's signature of its update"
    asked = entry.get("asked", round_num)
    if type(asked) is not int or not 1 <= asked <= round_num or (client_id, asked) in seen:
        return "changed: asked: expected an earlier round whose update has not counted yet"
    seen.add((client_id, asked))
    if not is_signed(keys[client_id], signature, signed_statement(run, asked, client_id, commitment)):
        return f"changed: its signature is not one of the site's key {keys[client_id][:16]}… for this update and round"
    return None
