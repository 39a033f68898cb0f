"""Logs departments' mixtures of predictions, and writes what is needed to use them."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.evaluation.department_mixtures import describe_mixture, levels_of, mean_losses, measure_mixtures
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.storage.run_layout import DEPARTMENT_MIXTURES, MIXTURE_LEVELS, cluster_file, mixture_level

if TYPE_CHECKING:
    from fl_lightning.state import LoraState
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)


class DepartmentMixtures(FederatedCallback):
    """Logs and writes departments' mixtures in rounds that are evaluated, with ``dept_clusters.mix: predictions``.

    Logs ``<department>/mixture/<level>``, the weights, and after the last round the held-out losses
    ``<department>/eval/<level or mixture>_loss``, since each level costs a pass over all held-out records. Writes
    ``department_mixtures.json``, and the adapters of clusters and of the root to ``mixture_levels/``.

    Args:
        log_metrics: send weights and losses to the loggers, and a line for each department to the log.
        save_metadata: write the weights of every round, ``cluster_metadata/round_R_mixtures.json``.
    """

    def __init__(self, *, log_metrics: bool = True, save_metadata: bool = True) -> None:
        self.log_metrics = log_metrics
        self.save_metadata = save_metadata

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Measure, log and write, in rounds that are evaluated."""
        if not trainer.is_evaluated(trainer.round_num):
            return
        levels, weights = levels_of(trainer.federation), trainer.federation.mixtures
        is_last = trainer.round_num == trainer.federation_config.rounds
        losses = measure_mixtures(trainer.clients, trainer.panel.data, levels, weights) if is_last else {}
        if self.log_metrics:
            for department, by_level in weights.items():
                trainer.log({f"{department}/mixture/{level}": weight for level, weight in by_level.items()})
                by_loss = losses.get(department, {})
                trainer.log({f"{department}/eval/{level}_loss": loss for level, loss in by_loss.items()})
                log.info("round %d: %s", trainer.round_num, describe_mixture(department, by_level, by_loss))
            trainer.log({f"eval/{level}_loss": loss for level, loss in mean_losses(losses).items()})
        if trainer.run_folder is None:
            return
        if self.save_metadata:
            values = {"round": trainer.round_num, "weights": weights}
            trainer.writer.json(trainer.run_folder / cluster_file(trainer.round_num, "mixtures"), values)
        self._write(trainer, trainer.run_folder, levels, losses)

    def _write(
        self,
        trainer: FederatedTrainer,
        run_folder: Path,
        levels: dict[str, dict[str, LoraState]],
        losses: dict[str, dict[str, float]],
    ) -> None:
        """Write the adapters, the file that names them, and then remove those of clusters that are gone."""
        assignments, model = trainer.federation.cluster_assignments, trainer.module.model
        folders = {
            department: {level: mixture_level(level, department, assignments.get(department)) for level in adapters}
            for department, adapters in levels.items()
        }
        shared = {
            folders[department][level]: adapter
            for department, adapters in levels.items()
            for level, adapter in adapters.items()
            if level != "department"  # in adapters/, see `AdapterExport`
        }
        for folder, adapter in shared.items():
            trainer.writer.submit(partial(export_lora_adapter, model, run_folder / folder, adapter))
        departments = {
            name: {"weights": weights, "losses": losses.get(name, {}), "adapters": folders[name]}
            for name, weights in trainer.federation.mixtures.items()
        }
        values = {"round": trainer.round_num, "departments": departments, "mean": mean_losses(losses)}
        trainer.writer.json(run_folder / DEPARTMENT_MIXTURES, values)
        trainer.writer.submit(partial(_remove_others, run_folder, set(shared)))


def _remove_others(run_folder: Path, names: set[str]) -> None:
    """Remove the adapters of levels that are not named."""
    for path in (run_folder / MIXTURE_LEVELS).glob("*"):
        if path.relative_to(run_folder).as_posix() not in names:
            shutil.rmtree(path, ignore_errors=True)
