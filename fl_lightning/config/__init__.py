"""What a run can be told: typed blocks, checked when they are made.

================  =======================================================================================
file              block of the YAML
================  =======================================================================================
`run`             `RunConfig`: all blocks; ``logging`` and ``retention``
`model`           ``model``: the base model
`data`            ``data``: departments, clients and records
`lora`            ``lora``: rank, scaling, target modules; other ranks for single departments and clients
`training`        ``training``: a client's fit; ``fabric``: devices and precision
`federation`      ``federation``: sharing, aggregation, server step, guard
`clusters`        ``federation.client_clusters``, ``federation.dept_clusters`` and ``federation.hierarchy``
`schedule`        ``federation.schedule``: synchronous or buffered rounds, virtual time
`evaluation`      ``evaluation``: in which rounds, and on whose records
`privacy`         ``federation.privacy``: differential privacy at the server; ``federation.masking``
`ledger`          ``ledger``: the chain of rounds, and who signs it
`personal`        ``personal``: what each client takes
`audit`           ``audit``: canaries in the records
`network`         ``network``; ``network.local_privacy``: differential privacy at the sites
================  =======================================================================================

================  =======================================================================================
file              does
================  =======================================================================================
`checks`          compares each field with its type and range
`compatibility`   refuses choices that do not go together; `schedule_compatibility` those with buffered steps,
                  `secure_compatibility` those with secure aggregation
`parsing`         YAML and command line → `RunConfig`, and back to YAML
`shortcuts`       ``--rounds`` and other short flags
`yaml_checks`     unknown keys and values, with their lines
`templates`       the YAML of a new config
================  =======================================================================================
"""

from fl_lightning.config.audit import AuditConfig
from fl_lightning.config.clusters import ClientClustersConfig, DeptClustersConfig, HierarchyConfig
from fl_lightning.config.data import EXAMPLE_DEPARTMENTS, DataConfig
from fl_lightning.config.evaluation import EvaluationConfig
from fl_lightning.config.federation import FederationConfig, FloraConfig, GuardConfig, ServerConfig
from fl_lightning.config.ledger import LedgerConfig
from fl_lightning.config.lora import LoraConfig, LoraProfile
from fl_lightning.config.model import TINY_BASE, ModelConfig
from fl_lightning.config.network import LocalPrivacyConfig, NetworkConfig
from fl_lightning.config.personal import PersonalConfig
from fl_lightning.config.privacy import MaskingConfig, PrivacyConfig
from fl_lightning.config.run import LoggingConfig, RetentionConfig, RunConfig
from fl_lightning.config.schedule import ClientProfilesConfig, ScheduleConfig
from fl_lightning.config.training import FabricConfig, TrainingConfig

__all__ = [
    "AuditConfig",
    "ClientClustersConfig",
    "ClientProfilesConfig",
    "DataConfig",
    "DeptClustersConfig",
    "EXAMPLE_DEPARTMENTS",
    "EvaluationConfig",
    "FabricConfig",
    "FederationConfig",
    "FloraConfig",
    "GuardConfig",
    "HierarchyConfig",
    "LedgerConfig",
    "LocalPrivacyConfig",
    "LoggingConfig",
    "LoraConfig",
    "LoraProfile",
    "MaskingConfig",
    "ModelConfig",
    "NetworkConfig",
    "PersonalConfig",
    "PrivacyConfig",
    "RetentionConfig",
    "RunConfig",
    "ScheduleConfig",
    "ServerConfig",
    "TINY_BASE",
    "TrainingConfig",
]
