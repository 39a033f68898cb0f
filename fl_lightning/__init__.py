"""Hierarchical federated LoRA fine-tuning of causal language models on PyTorch Lightning and Fabric.

Public names are resolved when they are first used, so that importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "fl_lightning.callbacks": [
        "AdapterExport",
        "ClientLog",
        "ClusterMonitor",
        "Evaluation",
        "FederatedCallback",
        "FederatedRound",
        "LoggerViews",
        "MemoryMonitor",
        "NetworkLog",
        "PhaseTimer",
        "RichProgress",
        "RoundCheckpoint",
        "Samples",
    ],
    "fl_lightning.clustering": [
        "cluster_aware_average_selected",
        "department_level_clustering",
        "determine_optimal_clusters",
    ],
    "fl_lightning.config": [
        "DataConfig",
        "FederationConfig",
        "LoraConfig",
        "ModelConfig",
        "RunConfig",
        "TrainingConfig",
    ],
    "fl_lightning.datamodule": ["FederatedDataModule"],
    "fl_lightning.errors": ["InputError", "RunError"],
    "fl_lightning.flora": ["flora_weighted_aggregate"],
    "fl_lightning.mixing": ["mix_with_cluster_average"],
    "fl_lightning.modeling.base_model": ["load_base_model"],
    "fl_lightning.modeling.lora": [
        "collect_lora_parameter_names",
        "collect_lora_state",
        "create_lora_model",
        "export_lora_adapter",
        "load_adapter_model",
        "load_lora_state",
    ],
    "fl_lightning.module": ["LoraClientModule"],
    "fl_lightning.network.flower.client_app": ["DepartmentLoraClient"],
    "fl_lightning.state": ["LoraState"],
    "fl_lightning.trainer": ["FederatedTrainer"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if TYPE_CHECKING:
    from fl_lightning.callbacks import AdapterExport as AdapterExport
    from fl_lightning.callbacks import ClientLog as ClientLog
    from fl_lightning.callbacks import ClusterMonitor as ClusterMonitor
    from fl_lightning.callbacks import Evaluation as Evaluation
    from fl_lightning.callbacks import FederatedCallback as FederatedCallback
    from fl_lightning.callbacks import FederatedRound as FederatedRound
    from fl_lightning.callbacks import LoggerViews as LoggerViews
    from fl_lightning.callbacks import MemoryMonitor as MemoryMonitor
    from fl_lightning.callbacks import NetworkLog as NetworkLog
    from fl_lightning.callbacks import PhaseTimer as PhaseTimer
    from fl_lightning.callbacks import RichProgress as RichProgress
    from fl_lightning.callbacks import RoundCheckpoint as RoundCheckpoint
    from fl_lightning.callbacks import Samples as Samples
    from fl_lightning.clustering import cluster_aware_average_selected as cluster_aware_average_selected
    from fl_lightning.clustering import department_level_clustering as department_level_clustering
    from fl_lightning.clustering import determine_optimal_clusters as determine_optimal_clusters
    from fl_lightning.config import DataConfig as DataConfig
    from fl_lightning.config import FederationConfig as FederationConfig
    from fl_lightning.config import LoraConfig as LoraConfig
    from fl_lightning.config import ModelConfig as ModelConfig
    from fl_lightning.config import RunConfig as RunConfig
    from fl_lightning.config import TrainingConfig as TrainingConfig
    from fl_lightning.datamodule import FederatedDataModule as FederatedDataModule
    from fl_lightning.errors import InputError as InputError
    from fl_lightning.errors import RunError as RunError
    from fl_lightning.flora import flora_weighted_aggregate as flora_weighted_aggregate
    from fl_lightning.mixing import mix_with_cluster_average as mix_with_cluster_average
    from fl_lightning.modeling.base_model import load_base_model as load_base_model
    from fl_lightning.modeling.lora import collect_lora_parameter_names as collect_lora_parameter_names
    from fl_lightning.modeling.lora import collect_lora_state as collect_lora_state
    from fl_lightning.modeling.lora import create_lora_model as create_lora_model
    from fl_lightning.modeling.lora import export_lora_adapter as export_lora_adapter
    from fl_lightning.modeling.lora import load_adapter_model as load_adapter_model
    from fl_lightning.modeling.lora import load_lora_state as load_lora_state
    from fl_lightning.module import LoraClientModule as LoraClientModule
    from fl_lightning.network.flower.client_app import DepartmentLoraClient as DepartmentLoraClient
    from fl_lightning.state import LoraState as LoraState
    from fl_lightning.trainer import FederatedTrainer as FederatedTrainer
