"""What loggers that take pictures get besides figures: a layout, similarities, and the outcome beside the config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.loggers.media import heatmap, put_layout, put_outcome, put_picture

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer

MOST = 64
"""A picture of more departments than that shows nothing."""


class LoggerViews(FederatedCallback):
    """Lays out TensorBoard's charts, draws who is like whom, and writes the outcome beside the config.

    Args:
        config: what the run is made of.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.config = dict(config or {})

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Charts that show departments, or a department's clients, together."""
        departments = sorted(trainer.federation.departments)
        clients = {d: [c for c, client in trainer.data.items() if client.department == d] for d in departments}
        names = [*departments, *trainer.tree.groups]
        layout = {
            "loss": {
                "departments": [f"{name}/eval/loss" for name in names],
                "mean": ["eval/loss", "eval/loss_client_mean"],
                **{f"clients of {d}": [f"{client}/eval/loss" for client in clients[d]] for d in departments},
            },
            "training": {f"clients of {d}": [f"{client}/train/loss" for client in clients[d]] for d in departments},
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
            put_layout(logger, layout)

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Similarities of the departments, and of each group's members."""
        step = trainer.round_num
        for group, found in trainer.report.clusterings.items():
            if found.cosine is None or len(found.departments) > MOST:
                continue
            key, pixels = f"similarity/{group or 'all'}", heatmap(found.departments, found.cosine.tolist())
            for logger in trainer.fabric.loggers:
                trainer.writer.submit(partial(put_picture, logger, key, pixels, step))

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """The last figures of the evaluation beside the config."""
        figures: dict[str, float] = {}
        for _, row in trainer.rows():
            figures.update({f"final/{key[5:]}": value for key, value in row.items() if key.startswith("eval/")})
        for logger in trainer.fabric.loggers:
            put_outcome(logger, self.config, figures, trainer.round_num)
