"""Logs the network traffic of a round, and collects the final adapters for the sites."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.personalization.shared_levels import levels_by_department

if TYPE_CHECKING:
    from fl_lightning.state import LoraState
    from fl_lightning.trainer import FederatedTrainer


class NetworkLog(FederatedCallback):
    """Logs ``network/up`` and ``network/down``: bytes of whole messages, where the round report counts tensors only.

    Args:
        levels: filled with {department: {level: whole adapter}} at the end of the run.
    """

    def __init__(self, levels: MutableMapping[str, dict[str, LoraState]]) -> None:
        self.levels = levels
        self._before: dict[str, int] = {}

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log the bytes since the previous round."""
        clients: Any = trainer.clients
        trainer.log({f"network/{name}": total - self._before.get(name, 0) for name, total in clients.traffic.items()})
        self._before = dict(clients.traffic)
        for client_id, error in clients.transport_errors.items():
            trainer.log({f"{client_id}/network/transport_error": error})

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Collect the final adapters of departments, clusters and the root; where clients keep a part, the first."""
        state = trainer.federation
        adapters = {department: state.final_adapter(department) for department in state.departments}
        if state.personal:
            self.levels.update({department: {"department": adapter} for department, adapter in adapters.items()})
        else:
            clusters = trainer.tree.department_clusters(state.cluster_assignments)
            self.levels.update(levels_by_department(adapters, clusters))
