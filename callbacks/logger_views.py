"""Pictures and tables for loggers that can show them: chart layout, similarities, final metrics beside the config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.federation.state import clients_by_department
from fl_lightning.loggers.distributions import MAX_CLIENTS
from fl_lightning.loggers.media import heatmap, log_image, log_layout, log_outcome

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer

MAX_DEPARTMENTS = 64
"""A heat map of more departments cannot be read."""


class LoggerViews(FederatedCallback):
    """Lays out TensorBoard's charts, draws similarities, and writes the final metrics beside the config.

    Args:
        config: of the run, as JSON values.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.config = dict(config or {})

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Lay out charts that show departments, or the clients of one, together."""
        departments = sorted(trainer.federation.departments)
        clients = clients_by_department(trainer.data if len(trainer.data) <= MAX_CLIENTS else ())
        names = [*departments, *trainer.tree.groups]
        layout = {
            "loss": {
                "departments": [f"{name}/eval/loss" for name in names],
                "mean": ["eval/loss", "eval/loss_client_mean"],
                **{f"clients of {d}": [f"{client}/eval/loss" for client in clients[d]] for d in clients},
            },
            "training": {f"clients of {d}": [f"{client}/train/loss" for client in clients[d]] for d in clients},
            "clusters": {
                "cluster of each department": [f"{name}/cluster" for name in names],
                "how many": ["round/n_clusters"],
            },
            "traffic": {
                f"bytes, {level}": [f"round/bytes/{level}/{way}" for way in ("up", "down")]
                for level in ("client", "department")
            },
        }
        for logger in trainer.fabric.loggers:
            log_layout(logger, layout)

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Draw the similarities of the members of each group, departments included."""
        step = trainer.round_num
        for group, clustering in trainer.report.clusterings.items():
            if clustering.cosine is None or len(clustering.departments) > MAX_DEPARTMENTS:
                continue
            key, pixels = f"similarity/{group or 'all'}", heatmap(clustering.departments, clustering.cosine.tolist())
            for logger in trainer.fabric.loggers:
                trainer.writer.submit(partial(log_image, logger, key, pixels, step))

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Write the last metrics of the evaluation beside the config."""
        metrics: dict[str, float] = {}
        for _, row in trainer.rows():
            metrics.update({f"final/{key[5:]}": value for key, value in row.items() if key.startswith("eval/")})
        for logger in trainer.fabric.loggers:
            log_outcome(logger, self.config, metrics, trainer.round_num)
