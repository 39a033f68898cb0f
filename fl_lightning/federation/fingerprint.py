"""What a run is made of, as hashes: a resumed run must find the same config, records and base model.

The records are hashed as token ids, so another tokenizer or template shows as well; the base by its weights as loaded,
so another precision shows. Paths may change: a run and its data can be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError

MUTABLE_KEYS = (
    "output",
    "model.name_or_path",
    "data.root",
    "federation.rounds",
    "training.clients_at_once",
    "training.gradient_checkpointing",
    "fabric.accelerator",
    "fabric.devices",
    "fabric.num_nodes",
    "fabric.parallelism",
    "fabric.strategy",
    "fabric.memory_limit_mb",
    "logging",
    "retention",
    "network.host",
    "network.port",
    "network.certificates",
    "network.join_timeout",
    "network.deadline",
    "network.quorum",
    "network.max_message_mb",
    "network.transport",
)
"""Keys that a resumed run may give another value; of the paths, what they lead to must be the same."""


USER_KEYED = ("lora.profiles", "federation.hierarchy.groups")
"""Mappings whose keys are the user's: one more or less is a change."""


def fingerprint_run(config: RunConfig, data: Mapping[str, ClientData], base: str) -> dict[str, Any]:
    """JSON values that are equal for equal runs.

    Args:
        config: of the run.
        data: {client_id: tokenised records}.
        base: `fingerprint` of the base model.
    """
    clients = {client_id: records_digest(client) for client_id, client in data.items()}
    return {"config": _fixed(config.to_dict()), "clients": clients, "base": base}


def fingerprint_model(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_fingerprint(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run goes on with what it began with.

    Raises:
        InputError: naming the first thing that has changed.
    """
    for key, value in now["config"].items():
        if key in before["config"] and before["config"][key] != value:
            raise InputError(
                f"{key}: got {value!r}, wanted {before['config'][key]!r} as the run began with; "
                f"start a new run, or change only {', '.join(MUTABLE_KEYS)}"
            )
    departments = [sorted({client_id.split("/")[0] for client_id in side["clients"]}) for side in (before, now)]
    if departments[0] != departments[1]:
        raise InputError(f"data.root: its departments are {departments[1]}, wanted {departments[0]} as the run began")
    for client_id in sorted(before["clients"].keys() | now["clients"].keys()):
        was, is_now = before["clients"].get(client_id), now["clients"].get(client_id)
        if was != is_now:
            what = "it is new" if was is None else "it is gone" if is_now is None else "its records have changed"
            raise InputError(f"data.root: {client_id}: {what} since the run began; wanted the same records")
    if before["base"] != now["base"]:
        raise InputError(
            f"model.name_or_path: got a base model with SHA-256 {now['base'][:12]}…, wanted {before['base'][:12]}…, "
            "with which the run began; its weights or their precision have changed"
        )


def _fixed(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of everything that may not change."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if key in MUTABLE_KEYS:
            continue
        if isinstance(value, Mapping) and key not in USER_KEYED:
            found.update(_fixed(value, f"{key}."))
        else:
            found[key] = value
    return found


def records_digest(client: ClientData) -> str:
    """A short hash of a client's records as token ids."""
    digest = hashlib.sha256()
    for split in (client.train, client.eval):
        for example in split:
            digest.update(len(example).to_bytes(4, "little"))
            digest.update(example.ids.numpy().data)
            digest.update(example.supervised.numpy().data)
        digest.update(b"\xff")
    return digest.hexdigest()[:16]
