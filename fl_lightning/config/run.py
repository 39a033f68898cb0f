"""The whole configuration, `RunConfig`, with its ``logging`` and ``retention`` blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fl_lightning.config.audit import AuditConfig
from fl_lightning.config.checks import Block, NonNegativeInt, check
from fl_lightning.config.compatibility import check_compatible, check_own_adapters
from fl_lightning.config.data import DataConfig
from fl_lightning.config.evaluation import EvaluationConfig
from fl_lightning.config.federation import FederationConfig
from fl_lightning.config.ledger import LedgerConfig
from fl_lightning.config.lora import LoraConfig
from fl_lightning.config.model import ModelConfig
from fl_lightning.config.network import NetworkConfig
from fl_lightning.config.personal import PersonalConfig
from fl_lightning.config.secure_compatibility import check_secure_run
from fl_lightning.config.training import FabricConfig, TrainingConfig


def _default_loggers() -> list[dict[str, Any]]:
    return [{"class_path": f"lightning.pytorch.loggers.{name}"} for name in ("CSVLogger", "TensorBoardLogger")]


@dataclass
class LoggingConfig(Block, key="logging"):
    """What is logged in addition to the adapters."""

    loggers: list[dict[str, Any]] = field(default_factory=_default_loggers)
    """Lightning loggers, each a class_path and optionally init_args; save_dir is the run folder unless it is set."""
    cluster_logging: bool = True
    """Log clusters, similarities and aggregation statistics."""
    save_cluster_metadata: bool = True
    """Write cluster_metadata/*.json each round."""
    samples: NonNegativeInt = 2
    """Held-out prompts per department that the base model and the adapter answer after the last round; 0 turns this
    off."""

    def __post_init__(self) -> None:
        """Check the ranges, and that every logger names its class; init_args are checked by the logger itself."""
        super().__post_init__()
        for index, logger in enumerate(self.loggers):
            ok = isinstance(logger.get("class_path"), str) and set(logger) <= {"class_path", "init_args"}
            ok = ok and isinstance(logger.get("init_args", {}), dict)
            check(ok, f"logging.loggers[{index}]", "a mapping with class_path and optionally init_args", logger)


@dataclass
class RetentionConfig(Block, key="retention"):
    """Which files of earlier rounds are kept; 0 keeps all of them."""

    client_exports: NonNegativeInt = 0
    """Keep the client adapters of the last n rounds."""
    checkpoints: NonNegativeInt = 2
    """Keep the checkpoints of the last n rounds."""
    best: NonNegativeInt = 0
    """Additionally keep exports and checkpoints of the n rounds with the lowest mean evaluation loss."""
    first_rounds: NonNegativeInt = 4
    """Additionally keep the checkpoints before the first n rounds, from the second on, in which some client takes part
    for the first time: forget starts from them. 0 keeps none of them."""
    updates: bool = False
    """Keep the clients' updates of all rounds, so that forget fits only those again whose inputs have changed."""


@dataclass
class RunConfig(Block, key=""):
    """The whole configuration of a run; `configs/default.yaml` shows every key."""

    seed: NonNegativeInt = 1234
    """Seed of every random draw."""
    output: str = "lightning_logs"
    """Folder in which the version_N folders of runs are created."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The frozen base model."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters."""
    data: DataConfig = field(default_factory=DataConfig)
    """The departments' records."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """One client's fit in one round."""
    federation: FederationConfig = field(default_factory=FederationConfig)
    """The rounds."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """On whose held-out records, and in which rounds, adapters are evaluated."""
    fabric: FabricConfig = field(default_factory=FabricConfig)
    """Devices and precision."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Loggers and samples."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """Which files of earlier rounds are kept."""
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    """The chain of rounds."""
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    """Clients' own adapters, and what the command personalize gives each client."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """Canaries for the command audit."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Runs over several machines, by the commands server and client."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the choices go together."""
        super().__post_init__()
        if self.data.exclude:
            self._drop_excluded()
        check_compatible(self.federation, self.lora)
        check_own_adapters(self.personal, self.federation, self.lora)
        check_secure_run(self)
        ok = not (self.retention.updates and self.federation.secure_aggregation)
        check(ok, "retention.updates", "false with federation.secure_aggregation: nobody sees single updates", True)
        ok = self.data.selection_fraction > 0 or not self.training.early_stopping
        check(ok, "data.selection_fraction", "records for training.early_stopping, such as 0.2", 0)
        ok = self.data.selection_fraction > 0 or not self.federation.dept_clusters.mixes_predictions
        check(ok, "data.selection_fraction", "records for dept_clusters.mix: predictions, such as 0.2", 0)
        ok = not (self.personal.mixes_own and self.training.early_stopping)
        check(ok, "training.early_stopping", "false with personal.apfl_alpha, fedalt_weight or fedalt_gate", True)
        ok = not self.audit.canaries or self.audit.answer_tokens < self.data.max_length
        check(
            ok, "audit.answer_tokens", "fewer than data.max_length, so that a prompt has room", self.audit.answer_tokens
        )

    def _drop_excluded(self) -> None:
        """Take what `data.exclude` names out of the groups and profiles, where an unknown name would be an error.

        A team keeps the names of its members, since those that are left out keep their places, unless nobody is left.
        """
        gone, groups = set(self.data.exclude), self.federation.hierarchy.groups

        def left(name: str) -> bool:
            return not gone & {name, name.split("/", 1)[0]}

        while empty := [group for group, names in groups.items() if not any(map(left, names))]:
            gone |= set(empty)
            groups = {group: names for group, names in groups.items() if group not in empty}
        kept = {g: [name for name in names if "/" in name or left(name)] for g, names in groups.items()}
        hierarchy = replace(self.federation.hierarchy, groups=kept)
        self.federation = replace(self.federation, hierarchy=hierarchy)
        self.lora = replace(self.lora, profiles={n: p for n, p in self.lora.profiles.items() if left(n)})

    def to_dict(self) -> dict[str, Any]:
        """The config as nested plain dicts, as in config.yaml."""
        return asdict(self)
