"""Callbacks of a federated run: `FederatedRound` computes the next state, the others only read it."""

from fl_lightning.callbacks.adapter_export import AdapterExport
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.callbacks.client_log import ClientLog
from fl_lightning.callbacks.cluster_monitor import ClusterMonitor
from fl_lightning.callbacks.department_mixtures import DepartmentMixtures
from fl_lightning.callbacks.evaluation import Evaluation
from fl_lightning.callbacks.federated_round import FederatedRound
from fl_lightning.callbacks.logger_views import LoggerViews
from fl_lightning.callbacks.memory_monitor import MemoryMonitor
from fl_lightning.callbacks.network_log import NetworkLog
from fl_lightning.callbacks.phase_timer import PhaseTimer
from fl_lightning.callbacks.rich_progress import RichProgress
from fl_lightning.callbacks.round_checkpoint import RoundCheckpoint
from fl_lightning.callbacks.run_ledger import RunLedger
from fl_lightning.callbacks.samples import Samples

__all__ = [
    "AdapterExport",
    "ClientLog",
    "ClusterMonitor",
    "DepartmentMixtures",
    "Evaluation",
    "FederatedCallback",
    "FederatedRound",
    "LoggerViews",
    "MemoryMonitor",
    "NetworkLog",
    "PhaseTimer",
    "RichProgress",
    "RoundCheckpoint",
    "RunLedger",
    "Samples",
]
