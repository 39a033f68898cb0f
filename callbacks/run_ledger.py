"""Writes ``ledger.jsonl``: what went into each round and what came out, as a chain that ``verify`` checks."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.provenance import salts, signing
from fl_lightning.provenance.chain import LedgerFile, read_chain
from fl_lightning.provenance.chain_check import signed_bytes
from fl_lightning.provenance.digests import json_digest, records_digest, state_digest, update_digest
from fl_lightning.provenance.run_files import describe_files
from fl_lightning.provenance.site_signatures import SITES, update_commitment
from fl_lightning.storage.run_layout import LEDGER

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientUpdate
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)

PACKAGES = (
    "fl-lightning", "torch", "lightning", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy",
    "scikit-learn",
)  # fmt: skip


class RunLedger(FederatedCallback):
    """Appends a line to ``ledger.jsonl`` before each round's checkpoint, and one with the final files at the end.

    Updates and records are in it as commitments, see `fl_lightning.provenance.salts`. Under differential privacy
    numbers of examples, reasons and clipping factors are left out, since they come from records without noise.

    Args:
        identity: fingerprints of config and base model.
        sign_key: the operator's Ed25519 private key; None leaves the last line unsigned.
        secret: of the run; None takes that in the run's folder.
        on_line: takes the lines of rounds instead of the file.
    """

    def __init__(
        self,
        identity: Mapping[str, Any] | None = None,
        sign_key: Any = None,
        *,
        secret: str | None = None,
        on_line: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self._identity, self._sign_key = dict(identity or {}), sign_key
        self._secret, self._on_line = secret or "", on_line
        self._file: LedgerFile | None = None
        self._versions: dict[str, str] | None = None
        self._clients: dict[str, dict[str, Any]] = {}
        self._records: dict[str, str] = {}
        self._site_keys: dict[str, str] = {}
        self._line: dict[str, Any] = {}
        self._digests: dict[int, tuple[Mapping[str, torch.Tensor], str]] = {}

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Begin the ledger, or cut off what comes after the round from which the run resumes."""
        if trainer.run_folder is None or self._on_line is not None:
            return
        self._site_keys = dict(getattr(trainer.clients, "public_keys", {}))  # of clients on other machines
        file, self._file = LedgerFile(trainer.run_folder / LEDGER), None
        if trainer.round_num == 0:
            self._secret = salts.make_secret(trainer.run_folder)
            file.begin(self._start_line(trainer))
        elif not file.truncate(trainer.round_num):
            log.warning(
                "%s: does not reach round %d, from which the run resumes: rounds from here on are not recorded",
                file.path, trainer.round_num,
            )  # fmt: skip
            return
        else:
            self._secret = salts.read_secret(trainer.run_folder)
            versions = _versions()
            self._versions = None if read_chain(trainer.run_folder).start["versions"] == versions else versions
        self._file = file

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Note a commitment to the client's update and records."""
        if not self._is_on:
            return
        salt = salts.client_salt(self._secret, update.client_id)
        # A site signs what it has sent; what stays there is not the server's to say.
        state = trainer.policy.shared(update.state, update.round_num) if self._site_keys else update.state
        numbers = update.num_examples, update.num_tokens, update.losses
        entry: dict[str, Any] = {"update": update_commitment(salt, state, *numbers)}
        if update.signature:
            entry["signature"] = update.signature
            if (asked := trainer.tasks[update.client_id].seed_round) != trainer.round_num:
                entry["asked"] = asked
        if trainer.federation.privacy is None and not trainer.federation_config.secure_aggregation:
            entry["examples"] = update.num_examples
        self._clients[update.client_id] = entry
        members = trainer.data if trainer.policy.is_central else [update.client_id]
        for client_id in members:
            if (commitment := self._records_of(trainer, client_id)) is not None:
                self._clients.setdefault(client_id, {})["records"] = commitment

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Note a commitment to the client's own adapter."""
        if self._is_on:
            salt = salts.client_salt(self._secret, update.client_id)
            digest = update_digest(update.state, update.num_examples, update.num_tokens, update.losses)
            self._clients.setdefault(update.client_id, {})["own"] = salts.commit(salt, "own", digest)

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """Put the line together: who was asked, what counted for how much, and the states at each step."""
        if not self._is_on:
            return
        report, federation = trainer.report, trainer.federation
        for masked in getattr(trainer.clients, "masked_sums", {}).values():  # of clients on other machines
            for client_id in masked.clients:
                self._clients.setdefault(client_id, {})["summed"] = True
        is_private = federation.privacy is not None
        departments: dict[str, dict[str, Any]] = {}
        for name, department in report.departments.items():
            for client, weight in department.weights.items():
                self._clients.setdefault(f"{name}/{client}", {})["weight"] = weight
            for client, reason in department.rejected.items():
                hidden = "left out" if is_private else reason
                self._clients.setdefault(f"{name}/{client}", {})["rejected"] = hidden
            if not is_private:
                for client, factor in department.scaled.items():
                    self._clients.setdefault(f"{name}/{client}", {})["scaled"] = factor
            values: dict[str, Any] = {}
            if name in report.aggregated:
                values["aggregated"] = self._digest(report.aggregated[name])
            if department.client_clusters:
                values["client_clusters"] = department.client_clusters
                starts = {
                    client: self._digest(federation.client_starts[f"{name}/{client}"])
                    for client in department.client_clusters
                }
                values["client_starts"] = salts.commit(self._secret, "starts", json_digest(starts))
            departments[name] = values
        self._line = {
            "kind": "round",
            "round": trainer.round_num,
            "clients": self._clients,
            "no_reply": sorted(trainer.tasks.keys() - self._clients.keys()),
            "dropped": sorted(report.dropped),
            "departments": departments,
            "clusters": federation.cluster_assignments,
            "states": self._states(trainer),
            **({} if self._versions is None else {"versions": self._versions}),
        }
        current = {id(s) for s in (*federation.departments.values(), *federation.groups.values())}
        self._digests = {key: value for key, value in self._digests.items() if key in current}
        self._clients = {}

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Append the line, on the disk before the round's checkpoint is."""
        if self._on_line is not None:
            self._on_line(self._line)
        elif self._file is not None:
            file, line = self._file, self._line
            trainer.writer.submit(lambda: file.append(line))

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Append the last line, after all other files are written."""
        if self._file is not None and trainer.run_folder is not None:
            file, folder, rounds = self._file, trainer.run_folder, trainer.round_num
            trainer.writer.submit(lambda: self._end(file, folder, rounds))

    def _end(self, file: LedgerFile, run_folder: Path, rounds: int) -> None:
        values: dict[str, Any] = {"kind": "end", "rounds": rounds, **describe_files(run_folder)}
        if self._sign_key is not None:
            values["public_key"] = signing.public_key_of(self._sign_key)
            values["signature"] = signing.sign(self._sign_key, signed_bytes({**values, "previous": file.previous}))
        file.append(values)

    @property
    def _is_on(self) -> bool:
        return self._file is not None or self._on_line is not None

    def _start_line(self, trainer: FederatedTrainer) -> dict[str, Any]:
        return {
            "kind": "start",
            "run": salts.run_id(self._secret),
            "config": json_digest(self._identity.get("config", {})),
            "base": str(self._identity.get("base", "")),
            "versions": _versions(),
            "states": self._states(trainer),
            **({SITES: self._site_keys} if self._site_keys else {}),
        }

    def _states(self, trainer: FederatedTrainer) -> dict[str, dict[str, str]]:
        states = {"departments": trainer.federation.departments, "groups": trainer.federation.groups}
        return {kind: {name: self._digest(s) for name, s in named.items()} for kind, named in states.items()}

    def _digest(self, state: Mapping[str, torch.Tensor]) -> str:
        """`state_digest`, computed once for a state that is kept."""
        if id(state) not in self._digests:
            self._digests[id(state)] = (state, state_digest(state))  # with the state, so that its id stays taken
        return self._digests[id(state)][1]

    def _records_of(self, trainer: FederatedTrainer, client_id: str) -> str | None:
        """The commitment to a client's training records; None if they are at a site."""
        if client_id not in self._records and client_id in trainer.data and trainer.data[client_id].train:
            salt = salts.client_salt(self._secret, client_id)
            digest = records_digest(trainer.data[client_id].train)
            self._records[client_id] = salts.commit(salt, "records", digest)
        return self._records.get(client_id)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # on PYTHONPATH, without metadata
            versions[package] = "unknown"
    return versions
