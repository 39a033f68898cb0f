"""The JSON of a checkpoint: every key of ``state.json``, with its form checked before anything uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fl_lightning.clustering.tree import ROOT
from fl_lightning.errors import InputError
from fl_lightning.federation.history import HistoryMark, Row, is_count, is_row
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.storage.files import read_json

SCHEMA = 2
"""Version of ``state.json``; files without one are of version 1, which has no states of earlier rounds."""

OWNER_KINDS = ("departments", "client_starts", "server", "products", "groups", "past")
"""Kinds of states in ``state.safetensors``, apart from ``initial``."""

OPTIONAL_KINDS = ("server", "products", "groups", "past")
"""Kinds that the checkpoints of older versions lack."""

EXPECTED = "expected the file as the run wrote it"


@dataclass(frozen=True)
class CheckpointExtra:
    """What a run keeps besides the state of its federation; the key ``extra`` of ``state.json``.

    Attributes:
        callbacks: {state key: state of a callback}.
        history: rows (step, metrics) that were logged. In the file it is a `HistoryMark`, and the rows are in
            ``history.jsonl``; checkpoints of older versions hold the rows themselves.
        records: {state key: {round: record of a callback}}, from ``history.jsonl``.
        identity: fingerprints of config, clients and base model; None if the checkpoint has none.
    """

    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    records: dict[str, dict[int, Any]] = field(default_factory=dict)
    identity: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointHeader:
    """``state.json``.

    Attributes:
        round: the last complete round.
        examples: {client_id: num_examples}.
        cluster_assignments: {department or group: cluster id}.
        owners: {kind: {owner: number of its state in state.safetensors}}.
        personal: ids of the clients that have a file under ``personal/``.
        own: ids of the clients that have a file under ``own/``.
        best: {owner of a file under ``best/``: {"round", "loss"}}, see `FederationState.best`.
        mixtures: see `FederationState.mixtures`.
        callbacks: see `CheckpointExtra`.
        history: where the rows end in ``history.jsonl``, or the rows themselves.
        identity: see `CheckpointExtra`.
        grouping: see `FederationState.clustering_memory`.
        privacy: ledger of what was released; None without differential privacy.
    """

    round: int
    examples: dict[str, int]
    cluster_assignments: dict[str, int]
    owners: dict[str, dict[str, int]]
    personal: list[str]
    own: list[str]
    best: dict[str, dict[str, Any]]
    mixtures: dict[str, dict[str, float]]
    callbacks: dict[str, dict[str, Any]]
    history: HistoryMark | list[Row]
    identity: dict[str, Any] | None
    grouping: dict[str, Any]
    privacy: Ledger | None

    def to_json(self) -> dict[str, Any]:
        """The JSON values to write."""
        extra: dict[str, Any] = {
            **({"callbacks": self.callbacks} if self.callbacks else {}),
            **({"history": asdict(self.history) if isinstance(self.history, HistoryMark) else self.history}),
            **({} if self.identity is None else {"identity": self.identity}),
        }
        return {
            "schema": SCHEMA,
            "round": self.round,
            "examples": self.examples,
            "cluster_assignments": self.cluster_assignments,
            "owners": self.owners,
            **({"grouping": self.grouping} if self.grouping else {}),
            "personal": self.personal,
            **({"own": self.own} if self.own else {}),
            **({"best": self.best} if self.best else {}),
            **({"mixtures": self.mixtures} if self.mixtures else {}),
            **({} if self.privacy is None else {"privacy": asdict(self.privacy)}),
            "extra": extra,
        }

    @classmethod
    def read(cls, path: Path) -> CheckpointHeader:
        """Read and check ``state.json``.

        Raises:
            InputError: naming the first key that is missing or of another form.
        """
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected an object, got {type(values).__name__}")
        schema = values.get("schema", 1)
        if not is_count(schema) or schema > SCHEMA:
            raise InputError(
                f"{path}: schema: expected at most {SCHEMA}, got {str(schema)[:40]}; resume with the version of "
                "fl_lightning that the run was started with"
            )
        owners, personal, own, extra = (values.get(key) for key in ("owners", "personal", "own", "extra"))
        own = [] if own is None else own
        owners, extra = (value if isinstance(value, dict) else {} for value in (owners, extra))
        history, callbacks, identity = extra.get("history", []), extra.get("callbacks", {}), extra.get("identity")
        forms = {
            "round": is_count(values.get("round")),
            "examples": _are_counts(values.get("examples")) and all(values["examples"].values()),
            "cluster_assignments": _are_counts(values.get("cluster_assignments")),
            "personal": _are_names(personal),
            "own": _are_names(own),
            "best": _are_best_rounds(values.get("best", {})),
            "mixtures": _are_mixtures(values.get("mixtures", {})),
            "grouping": isinstance(values.get("grouping", {}), dict),
            "privacy": "privacy" not in values or _is_ledger(values["privacy"]),
            **{
                f"owners.{kind}": _are_counts(owners.get(kind, {} if kind in OPTIONAL_KINDS else None))
                for kind in OWNER_KINDS
            },
            "owners.past's names": all(name.rpartition("/")[2].isdecimal() for name in owners.get("past") or {}),
            "extra": isinstance(values.get("extra"), dict),
            "extra.history": HistoryMark.describes(history)
            or (isinstance(history, list) and all(map(is_row, history))),
            "extra.callbacks": isinstance(callbacks, dict)
            and all(isinstance(state, dict) for state in callbacks.values()),
            "extra.identity": extra.get("identity", {}) == {} or _is_identity(identity),
        }
        if wrong := [key for key, is_right in forms.items() if not is_right]:
            raise InputError(f"{path}: {wrong[0]} is missing or of another form; {EXPECTED}")
        known = owners["departments"]
        for client_ids in (
            values["examples"],
            values["personal"],
            own,
            *(owners.get(kind, {}) for kind in ("client_starts", "server", "products", "past")),
            identity["clients"] if identity else (),
        ):
            _check_departments(path, client_ids, known)
        _check_departments(path, values.get("mixtures", {}), known)
        _check_departments(path, values["cluster_assignments"], {**known, **owners.get("groups", {})})
        return cls(
            values["round"],
            values["examples"],
            values["cluster_assignments"],
            {kind: owners.get(kind, {}) for kind in OWNER_KINDS},
            values["personal"],
            own,
            values.get("best", {}),
            values.get("mixtures", {}),
            callbacks,
            HistoryMark(**history) if isinstance(history, dict) else [(step, row) for step, row in history],
            identity or None,
            _by_group(values.get("grouping", {})),
            Ledger(**values["privacy"]) if "privacy" in values else None,
        )


def _by_group(memory: dict[str, Any]) -> dict[str, Any]:
    """{group: memory}; versions without groups kept only that of the whole federation."""
    return {ROOT: memory} if memory.keys() & {"relation", "clients", "hysteresis"} else memory


def _check_departments(path: Path, names: Iterable[str], departments: Collection[str]) -> None:
    if unknown := {name.split("/")[0] for name in names} - set(departments):
        raise InputError(f"{path}: departments: expected an adapter of {min(unknown)}, got none; {EXPECTED}")


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_count, value.values()))


def _are_best_rounds(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(best, dict) and is_count(best.get("round")) and isinstance(best.get("loss", ""), float | None)
        for best in value.values()
    )


def _are_mixtures(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(weights, dict) and all(isinstance(weight, float) for weight in weights.values())
        for weights in value.values()
    )


def _is_ledger(value: object) -> bool:
    if not isinstance(value, Mapping) or value.keys() != {"key", "clips", "rounds"}:
        return False
    clips = value["clips"].values() if isinstance(value["clips"], dict) else [None]
    return (
        isinstance(value["key"], str)
        and all(isinstance(clip, float) and clip > 0 for clip in clips)
        and _are_counts(value["rounds"])
    )


def _is_identity(value: object) -> bool:
    forms = {"config": dict, "clients": dict, "base": str}
    return isinstance(value, dict) and all(isinstance(value.get(name), form) for name, form in forms.items())
