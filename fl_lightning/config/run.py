"""The whole configuration, `RunConfig`, with its ``logging`` and ``retention`` blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fl_lightning.config.checks import at_least, check, check_null
from fl_lightning.config.compatibility import check_compatible
from fl_lightning.config.data import DataConfig
from fl_lightning.config.federation import FederationConfig
from fl_lightning.config.lora import LoraConfig
from fl_lightning.config.model import ModelConfig
from fl_lightning.config.network import NetworkConfig
from fl_lightning.config.training import FabricConfig, TrainingConfig


def _default_loggers() -> list[dict[str, Any]]:
    return [{"class_path": f"lightning.pytorch.loggers.{name}"} for name in ("CSVLogger", "TensorBoardLogger")]


@dataclass
class LoggingConfig:
    """What is logged besides the adapters."""

    loggers: list[dict[str, Any]] = field(default_factory=_default_loggers)
    """Lightning loggers, each a class_path and, where wanted, init_args; save_dir is the run folder unless given."""
    cluster_logging: bool = True
    """Log clusters, similarities and aggregation statistics."""
    save_cluster_metadata: bool = True
    """Write cluster_metadata/*.json each round."""
    samples: int = 2
    """Held-out prompts a department that base and adapter answer after the last round; 0 takes none."""

    def __post_init__(self) -> None:
        """Check that every logger names its class. The rest is the logger's own business."""
        check_null(self, "logging.")
        at_least("logging.samples", self.samples, 0)
        wanted = "a mapping with class_path and, where wanted, init_args"
        for index, logger in enumerate(self.loggers):
            ok = isinstance(logger.get("class_path"), str) and set(logger) <= {"class_path", "init_args"}
            check(ok and isinstance(logger.get("init_args", {}), dict), f"logging.loggers[{index}]", logger, wanted)


@dataclass
class RetentionConfig:
    """What is kept of earlier rounds; 0 keeps everything."""

    client_exports: int = 0
    """Client adapters of the last so many rounds."""
    checkpoints: int = 2
    """Checkpoints of the last so many rounds."""
    best: int = 0
    """Besides them, exports and checkpoints of so many rounds with the lowest mean evaluation loss."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "retention.")
        at_least("retention.client_exports", self.client_exports, 0)
        at_least("retention.checkpoints", self.checkpoints, 0)
        at_least("retention.best", self.best, 0)


@dataclass
class RunConfig:
    """Everything a run is made of."""

    seed: int = 1234
    """Every random draw is hashed from it."""
    output: str = "lightning_logs"
    """Folder in which version_N folders appear."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The frozen base model."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters."""
    data: DataConfig = field(default_factory=DataConfig)
    """The records."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """A client's fit."""
    federation: FederationConfig = field(default_factory=FederationConfig)
    """The rounds."""
    fabric: FabricConfig = field(default_factory=FabricConfig)
    """Devices and precision."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Loggers."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """What is kept."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Between machines: the commands server and client."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "")
        at_least("seed", self.seed, 0)
        check_compatible(self.federation, self.lora)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, as they stand in config.yaml."""
        return asdict(self)
