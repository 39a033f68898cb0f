"""Exports adapters in PEFT's format: each client's after its fit, each department's after the round."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.federation.retention import kept_rounds
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.storage.run_layout import (
    CLIENT_INDEX,
    DEPARTMENT_INDEX,
    EARLY_STOPPING,
    GROUP_INDEX,
    adapter,
    client_export,
)

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientUpdate
    from fl_lightning.federation.state import BestRound
    from fl_lightning.state import LoraState
    from fl_lightning.trainer import FederatedTrainer


class AdapterExport(FederatedCallback):
    """Writes ``client_exports/``, ``adapters/``, and the JSON files that list them.

    Groups of departments have their adapters in ``adapters/`` too, listed in ``group_lora_federated.json``. Under early
    stopping ``adapters/`` has those of the best rounds, which ``early_stopping.json`` lists with their losses, and a
    client's export of its best round is kept.

    Args:
        keep_rounds: keep the client exports of the last n rounds; 0 keeps all.
        best: additionally keep those of the n rounds with the lowest ``eval/loss``.
    """

    def __init__(self, keep_rounds: int = 0, best: int = 0) -> None:
        self.keep_rounds, self.best = keep_rounds, best
        self._rounds: dict[str, dict[str, dict[str, str]]] = {}

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Export a client's adapter, unless its update was rejected or masked, or it is the central client."""
        if trainer.run_folder is None or update.client_id not in trainer.data:
            return
        if trainer.federation_config.secure_aggregation:
            return
        department, client = update.client_id.split("/", 1)
        if client in trainer.report.departments[department].rejected:
            return
        path = client_export(department, client, update.round_num)
        self._export(trainer, path, trainer.tasks[update.client_id].adapter(update.state))
        this_round = self._rounds.setdefault(str(update.round_num), {})
        this_round.setdefault(department, {})[client] = path

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Export the departments' and groups' adapters, write the indexes, then remove old client exports."""
        if trainer.run_folder is None:
            return
        rounds = [int(r) for r in self._rounds]
        keep = kept_rounds(rounds, trainer.rows(), last=self.keep_rounds, best=self.best)
        federation = trainer.federation
        dropped = [path for r in rounds if r not in keep for path in self._drop(r, federation.best)]
        departments = {department: adapter(department) for department in federation.departments}
        for department, path in departments.items():
            self._export(trainer, path, federation.final_adapter(department))
        groups = {group: adapter(group) for group in federation.groups}
        for group, path in groups.items():
            self._export(trainer, path, federation.final_adapter(group))
        trainer.writer.json(trainer.run_folder / CLIENT_INDEX, {"rounds": self._rounds})
        trainer.writer.json(trainer.run_folder / DEPARTMENT_INDEX, departments)
        if groups:
            trainer.writer.json(trainer.run_folder / GROUP_INDEX, groups)
        if federation.best:
            best = {name: {"round": b.round_num, "loss": b.loss} for name, b in federation.best.items()}
            trainer.writer.json(trainer.run_folder / EARLY_STOPPING, best)
        for path in dropped:
            trainer.writer.submit(partial(shutil.rmtree, trainer.run_folder / path, ignore_errors=True))

    def _drop(self, round_num: int, best: Mapping[str, BestRound]) -> list[str]:
        """Forget the exports of a round, but those of clients whose best round it is; the paths forgotten."""
        dropped: list[str] = []
        kept: dict[str, dict[str, str]] = {}
        for department, clients in self._rounds[str(round_num)].items():
            for client, path in clients.items():
                owner = best.get(f"{department}/{client}")
                if owner is not None and owner.round_num == round_num:
                    kept.setdefault(department, {})[client] = path
                else:
                    dropped.append(path)
        if kept:
            self._rounds[str(round_num)] = kept
        else:
            del self._rounds[str(round_num)]
        return dropped

    def _export(self, trainer: FederatedTrainer, path: Path | str, state: LoraState) -> None:
        if trainer.run_folder is not None:
            model = trainer.module.model
            trainer.writer.submit(partial(export_lora_adapter, model, trainer.run_folder / path, state))

    def state_dict(self) -> dict[str, Any]:
        """Rounds whose client exports are kept."""
        return {"kept": list(self._rounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them; checkpoints of older versions hold the paths as well."""
        self._rounds = state["rounds"] if "rounds" in state else {round_num: {} for round_num in state["kept"]}

    def round_record(self, round_num: int) -> dict[str, dict[str, str]] | None:
        """Paths of a round's client exports: {department: {client: path}}."""
        return self._rounds.get(str(round_num))

    def load_round_records(self, records: Mapping[int, Any]) -> None:
        """Take those of the rounds that are kept."""
        self._rounds.update({key: paths for n, paths in records.items() if (key := str(n)) in self._rounds})
