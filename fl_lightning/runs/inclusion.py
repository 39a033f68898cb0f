"""Tells a client in which rounds of a run its records are; makes the salt with which it asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fl_lightning.clustering.tree import client_teams
from fl_lightning.config import RunConfig
from fl_lightning.data.chat_template import pin_chat_template, pin_date
from fl_lightning.data.client_data import ClientReader, load_clients
from fl_lightning.data.client_files import client_files_at
from fl_lightning.data.exclusion import without_records
from fl_lightning.errors import InputError, nearest
from fl_lightning.modeling.base_model import context_length, load_tokenizer
from fl_lightning.provenance.chain import Chain, ChainError, read_chain
from fl_lightning.provenance.digests import file_digest, records_digest
from fl_lightning.provenance.inclusion import find_inclusion
from fl_lightning.provenance.salts import client_salt, read_key, read_secret
from fl_lightning.storage.files import write_secret
from fl_lightning.storage.run_layout import CONFIG, LEDGER


def write_salt(run_folder: Path, client_id: str, path: Path) -> None:
    """Write a client's salt to a new file (0600); the operator hands it to this client and to nobody else.

    Args:
        run_folder: with the run's secret.
        client_id: of a client that took part.
        path: of the file.

    Raises:
        InputError: if the run has no ledger or no secret, the client is in no round, or the file exists.
    """
    client_ids = {client_id for line in read_chain(run_folder).rounds.values() for client_id in line["clients"]}
    if client_id not in client_ids:
        raise InputError(
            f"--client: expected a client of {run_folder / LEDGER}, got {client_id!r}, which is in no round"
            f"{nearest(client_id, client_ids)}"
        )
    salt = client_salt(read_secret(run_folder), client_id)
    try:
        write_secret(path, f"{salt}\n".encode())
    except FileExistsError as error:
        raise InputError(f"{path}: expected a new file, got one that exists; secrets are never replaced") from error


def show_inclusion(
    run_folder: Path, config: RunConfig, chain: Chain, client_id: str, salt: Path, records: Path | None = None
) -> list[int]:
    """The rounds of a run in which a client's records are.

    Args:
        run_folder: of the run; its ``config.yaml`` says how records are read.
        config: of the run, with the places of base and data on this machine.
        chain: of the run; it holds.
        client_id: of the client.
        salt: file with its salt.
        records: its file or folder of records; None takes that in the run's data.

    Raises:
        InputError: if salt, records or tokenizer cannot be read.
        ChainError: if the records are not in every round in which the client took part, or it is in none.
    """
    path = run_folder / LEDGER
    key = read_key(salt)
    if chain.lines[-1]["files"].get(CONFIG) != file_digest(run_folder / CONFIG):
        raise ChainError(f"{run_folder / CONFIG}: changed: the ledger's last line has another SHA-256")
    if all(client_id not in line["clients"] for line in chain.rounds.values()):
        raise ChainError(f"{path}: {client_id} is in no round")
    inclusion = find_inclusion(chain, client_id, key, _digests(config, client_id, records))
    if inclusion.without:
        number = inclusion.without[0]
        raise ChainError(
            f"{path}:{number + 1}: {client_id} took part in round {number} with records that never left its "
            "site: the ledger has a commitment to its update, and none to its records"
        )
    if inclusion.others:
        number = inclusion.others[0]
        raise ChainError(
            f"{path}:{number + 1}: {client_id} took part in round {number}, but not with these records, or "
            "the salt is not the one of this client and run"
        )
    return inclusion.rounds


def _digests(config: RunConfig, client_id: str, records: Path | None) -> list[str]:
    """Digests of a client's training records, one for each way in which the run may have read them."""
    data = config.data
    department, _, client = client_id.partition("/")
    for old_id, team in client_teams(config.federation.hierarchy.groups).items():
        if (team, client) == (department, old_id.partition("/")[2]):
            department = old_id.partition("/")[0]  # splits are drawn by the names in the data
            break
    tokenizer = load_tokenizer(config.model)
    pin_date(data, tokenizer)
    pin_chat_template(tokenizer, data)
    max_length = min(data.max_length, context_length(config.model) or data.max_length)
    digests = frozenset(data.exclude_records)
    reader = ClientReader(
        tokenizer, max_length, data.max_records, data.eval_fraction, data.selection_fraction,
        config.evaluation.records, config.seed, digests,
    )  # fmt: skip
    if records is None:
        loaded = load_clients(
            data.root,
            tokenizer,
            client_id=f"{department}/{client}",
            clients_per_dept=data.max_clients,
            max_records=data.max_records,
            max_length=max_length,
            eval_fraction=data.eval_fraction,
            selection=data.selection_fraction,
            eval_records=config.evaluation.records,
            seed=config.seed,
            columns=data.columns,
            exclude=data.exclude,
            exclude_records=data.exclude_records,
        )
        return [records_digest(member.train) for member in loaded.values()]
    if not records.exists() or (source := client_files_at(records, department)) is None:
        raise InputError(
            f"{records}: expected a client's folder with train.jsonl, or its file of records (.jsonl, .json), got "
            f"{'another file' if records.exists() else 'no such file'}"
        )
    source = replace(source, department=department, client=client)
    training, held_out = reader.splits(source)
    ways = [reader.tokenize(source, training, held_out)]
    if source.eval_name is None:  # the file may be a train.jsonl without what lay beside it
        whole = without_records(source.training_records(), digests)[: data.max_records]
        ways.append(reader.tokenize(source, whole, []))
    return [records_digest(way.train) for way in ways]
