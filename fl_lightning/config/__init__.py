"""What a run can be told: typed blocks, checked when they are made.

=================  ==================================================================================
file               block of the YAML
=================  ==================================================================================
`run`              `RunConfig`: all blocks, ``logging`` and ``retention``
`lora`             ``lora``: rank, scaling, target modules, profiles of clients
`federation`       ``federation``: sharing, aggregation, server step, robust rules
`hierarchy`        ``federation.hierarchy``: groups of departments
`privacy`          ``federation.privacy`` and ``federation.local_privacy``
`network`          ``network``
`parsing`          YAML and command line → `RunConfig`, and back to YAML
=================  ==================================================================================
"""

from fl_lightning.config.federation import (
    ClientClustersConfig,
    DeptClustersConfig,
    FederationConfig,
    FloraConfig,
    GuardConfig,
    ServerConfig,
)
from fl_lightning.config.hierarchy import HierarchyConfig
from fl_lightning.config.lora import LoraConfig, LoraProfile
from fl_lightning.config.network import LocalPrivacyConfig, NetworkConfig
from fl_lightning.config.privacy import PrivacyConfig
from fl_lightning.config.run import (
    EXAMPLE_DEPARTMENTS,
    TINY_BASE,
    DataConfig,
    FabricConfig,
    LoggingConfig,
    ModelConfig,
    RetentionConfig,
    RunConfig,
    TrainingConfig,
)

__all__ = [
    "ClientClustersConfig",
    "DataConfig",
    "DeptClustersConfig",
    "EXAMPLE_DEPARTMENTS",
    "FabricConfig",
    "FederationConfig",
    "FloraConfig",
    "GuardConfig",
    "HierarchyConfig",
    "LocalPrivacyConfig",
    "LoggingConfig",
    "LoraConfig",
    "LoraProfile",
    "ModelConfig",
    "NetworkConfig",
    "PrivacyConfig",
    "RetentionConfig",
    "RunConfig",
    "ServerConfig",
    "TINY_BASE",
    "TrainingConfig",
]
