"""Writes sample answers of the base model and of each department's adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.evaluation.samples import as_json, as_markdown, take_samples
from fl_lightning.loggers.media import log_text
from fl_lightning.storage.run_layout import SAMPLES
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.worker_processes import WorkerProcesses

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer


class Samples(FederatedCallback):
    """After the last round, writes greedy answers to held-out prompts to ``samples.json`` and to the loggers.

    Args:
        tokenizer: of the base model.
        count: prompts per department; 0 turns it off.
    """

    def __init__(self, tokenizer: Any, count: int = 2) -> None:
        self.tokenizer, self.count = tokenizer, count

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Generate, write and log the answers."""
        clients = trainer.clients.local if isinstance(trainer.clients, WorkerProcesses) else trainer.clients
        if not self.count or not isinstance(clients, LocalClients) or clients.shards_base_model:
            return  # records on other machines stay there; no process can generate with a sharded base alone
        federation = trainer.federation
        adapters = {department: federation.adapter(department) for department in federation.departments}
        samples = take_samples(clients, self.tokenizer, trainer.data, federation.initial, adapters, count=self.count)
        if trainer.run_folder is not None:
            trainer.writer.json(trainer.run_folder / SAMPLES, as_json(samples))
        for department in adapters:
            text = as_markdown([sample for sample in samples if sample.department == department])
            for logger in trainer.fabric.loggers:
                log_text(logger, f"samples/{department}", text, trainer.round_num)
