"""Fingerprints of config, records and base model, which must be equal when a run resumes.

Records are hashed as token ids, so that another tokenizer or chat template is detected too; the base model is hashed by
its weights as loaded, so that another precision is detected. Paths may change: a run and its data can be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.client_profiles import trace_digest

MUTABLE_KEYS = (
    "output",
    "model.name_or_path",
    "data.root",
    "data.columns",
    "data.token_store",
    "federation.rounds",
    "training.clients_at_once",
    "training.gradient_checkpointing",
    "training.cuda_graphs",
    "fabric.accelerator",
    "fabric.devices",
    "fabric.num_nodes",
    "fabric.parallelism",
    "fabric.strategy",
    "fabric.memory_limit_mb",
    "logging",
    "retention",
    "ledger",
    "personal.levels",
    "personal.root",
    "personal.own_adapters",
    "personal.mates",
    "personal.adapter",
    "personal.distill_epochs",
    "personal.choose",
    "personal.prior",
    "personal.refit",
    "network.host",
    "network.port",
    "network.certificates",
    "network.join_timeout",
    "network.deadline",
    "network.quorum",
    "network.max_message_mb",
    "network.transport",
    "network.lend",
    "network.roster",
)
"""Keys that a resumed run may change. Data and base model are compared by content, wherever their paths lead."""

USER_KEYED = ("lora.profiles", "federation.hierarchy.groups", "data.chat_template_kwargs")
"""Mappings whose keys the user chooses; they are compared as a whole."""


def fingerprint_run(
    config: RunConfig, data: Mapping[str, ClientData], base: str, *, client_ids: Iterable[str] | None = None
) -> dict[str, Any]:
    """A run's fingerprint: JSON values that are equal for equal runs.

    Args:
        config: of the run.
        data: {client_id: tokenized records}.
        base: `fingerprint_model` of the base model.
        client_ids: of all clients, if `data` has some of them only.
    """
    clients = {client_id: records_digest(client) for client_id, client in data.items()}
    values = config.to_dict()
    profiles = values["federation"]["schedule"]["clients"]
    if profiles["trace"] is not None:
        profiles["trace"] = trace_digest(profiles["trace"])
    fingerprint = {"config": _fixed(values), "clients": clients, "base": base}
    if client_ids is not None:
        fingerprint["client_ids"] = hashlib.sha256("\n".join(client_ids).encode()).hexdigest()
    return fingerprint


def fingerprint_model(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a run continues with the config, records and base model that it started with.

    Args:
        saved: `fingerprint_run` in the checkpoint.
        current: `fingerprint_run` now.

    Raises:
        InputError: naming the first difference.
    """
    for key, value in current["config"].items():
        if key in saved["config"] and saved["config"][key] != value:
            raise InputError(
                f"{key}: expected {saved['config'][key]!r}, with which the run started, got {value!r}; "
                f"start a new run, or change only {', '.join(MUTABLE_KEYS)}"
            )
    if "client_ids" in current and "client_ids" not in saved:  # of an older version, which hashed every client
        saved = {**saved, "clients": {c: saved["clients"].get(c) for c in current["clients"]}}
    departments = [sorted({client_id.split("/")[0] for client_id in side["clients"]}) for side in (saved, current)]
    if departments[0] != departments[1]:
        raise InputError(
            f"data.root: expected the departments {departments[0]}, with which the run started, got {departments[1]}; "
            "restore the data, or start a new run"
        )
    if saved.get("client_ids", current.get("client_ids")) != current.get("client_ids"):
        raise InputError(
            "data.root: expected the clients with which the run started, got others; restore the data, or start a new "
            "run"
        )
    for client_id in sorted(saved["clients"].keys() | current["clients"].keys()):
        before, after = saved["clients"].get(client_id), current["clients"].get(client_id)
        if before != after:
            change = "a new client" if before is None else "no such client" if after is None else "other records"
            raise InputError(
                f"data.root: {client_id}: expected the records with which the run started, got {change}; "
                "restore the data, or start a new run"
            )
    if saved["base"] != current["base"]:
        raise InputError(
            f"model.name_or_path: expected the base model with which the run started (SHA-256 {saved['base'][:12]}…), "
            f"got another one ({current['base'][:12]}…); its weights or their precision have changed"
        )


def _fixed(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of everything that must not change."""
    fixed: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if key in MUTABLE_KEYS:
            continue
        if isinstance(value, Mapping) and key not in USER_KEYED:
            fixed.update(_fixed(value, f"{key}."))
        else:
            fixed[key] = value
    return fixed


def records_digest(client: ClientData) -> str:
    """A short hash of a client's records as token ids."""
    digest = hashlib.sha256()
    for split in (client.train, client.eval, *([client.selection] if client.selection else [])):
        for example in split:
            digest.update(len(example).to_bytes(4, "little"))
            digest.update(example.ids.numpy().data)
            digest.update(example.supervised.numpy().data)
        digest.update(b"\xff")
    return digest.hexdigest()[:16]
