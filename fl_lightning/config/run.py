"""The configuration: typed blocks, each key documented at its field and checked at birth.

`configs/default.yaml` shows every key. Checks name the key in full (``federation.rounds``), what was got and what was
wanted. Nothing heavy is imported here, so that ``--help`` stays fast.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fl_lightning.config.checks import at_least, check, check_null, one_of, positive
from fl_lightning.config.compatibility import check_ranks
from fl_lightning.config.federation import (
    FederationConfig,
)
from fl_lightning.config.lora import LoraConfig
from fl_lightning.config.network import NetworkConfig
from fl_lightning.errors import InputError

TINY_BASE = "bundled:tiny_base"
"""Name of the base model inside the package."""
EXAMPLE_DEPARTMENTS = "bundled:departments"
"""Name of the example data inside the package."""


@dataclass
class ModelConfig:
    """The frozen base model."""

    name_or_path: str = TINY_BASE
    """A Hub id, a local folder, a local .gguf file, or bundled:tiny_base."""
    load_in_4bit: bool = False
    """Quantise the base to NF4 with bitsandbytes."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the weights. Only for models you trust."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "model.")
        check(bool(self.name_or_path.strip()), "model.name_or_path", self.name_or_path, "a Hub id or a path")


@dataclass
class DataConfig:
    """Where the departments' records are and how much of them is used."""

    root: str = EXAMPLE_DEPARTMENTS
    """A folder of departments, or bundled:departments."""
    clients_per_dept: int = 3
    """The first so many clients of each department, in natural order."""
    max_records: int = 128
    """At most so many training records a client."""
    max_length: int = 512
    """Tokens a record; longer ones are cut, the prompt's beginning first."""
    eval_fraction: float = 0.2
    """Share held out where a client is a single file without eval split, in (0, 1)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "data.")
        at_least("data.clients_per_dept", self.clients_per_dept, 1)
        at_least("data.max_records", self.max_records, 1)
        at_least("data.max_length", self.max_length, 8)
        check(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "a number between 0 and 1")


@dataclass
class TrainingConfig:
    """One client's fit in one round."""

    local_epochs: int = 1
    """Passes over the client's records."""
    learning_rate: float = 2e-4
    """Of AdamW, constant."""
    batch_size: int = 4
    """Records in a micro-batch."""
    accumulate_grad_batches: int = 1
    """Micro-batches in an optimizer step; the last, partial window steps too."""
    max_grad_norm: float = 1.0
    """Clip each client's gradient to this norm; 0 turns it off."""
    weight_decay: float = 0.0
    """Of AdamW, on the LoRA factors."""
    proximal_mu: float = 0.0
    """FedProx: adds proximal_mu / 2 times the squared distance from the start to each client's loss; 0 turns it off."""
    clients_at_once: int | Literal["auto"] = "auto"
    """Clients trained together in one forward pass, or auto."""
    gradient_checkpointing: bool = False
    """Keep the layers' inputs only and run them again in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "training.")
        at_least("training.local_epochs", self.local_epochs, 1)
        positive("training.learning_rate", self.learning_rate)
        at_least("training.batch_size", self.batch_size, 1)
        at_least("training.accumulate_grad_batches", self.accumulate_grad_batches, 1)
        for key in ("max_grad_norm", "weight_decay", "proximal_mu"):
            value = getattr(self, key)
            check(math.isfinite(value) and value >= 0, f"training.{key}", value, "a finite number of 0 or more")
        at_once = self.clients_at_once
        ok = at_once == "auto" or (isinstance(at_once, int) and at_once >= 1)
        check(ok, "training.clients_at_once", at_once, "auto or 1 or more")


@dataclass
class FabricConfig:
    """Devices and precision, as Lightning Fabric takes them."""

    accelerator: str = "auto"
    """auto, cpu or cuda."""
    devices: int = 1
    """Processes on this machine, each with a device of its own (on a CPU a share of the cores)."""
    num_nodes: int = 1
    """Machines, each started by torchrun."""
    parallelism: Literal["clients", "data"] = "clients"
    """What several processes share: clients trains whole cohorts on each, data every micro-batch."""
    strategy: str = "auto"
    """How several processes are joined, as in Fabric; fsdp cuts the base model up under parallelism: data."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on a GPU that has it, fp16 with loss scaling on an older one, fp32 on a CPU."""
    memory_limit_mb: int | None = None
    """MiB that each process may take, of its GPU or resident on a CPU; a cohort that wants more is cut in halves."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "fabric.")
        one_of("fabric.accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        one_of("fabric.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        one_of("fabric.parallelism", self.parallelism, ("clients", "data"))
        at_least("fabric.devices", self.devices, 1)
        at_least("fabric.num_nodes", self.num_nodes, 1)
        if self.memory_limit_mb is not None:
            at_least("fabric.memory_limit_mb", self.memory_limit_mb, 1)
        if self.strategy == "fsdp" and (self.parallelism != "data" or self.devices * self.num_nodes == 1):
            raise InputError(
                f"fabric.strategy: got fsdp with parallelism {self.parallelism} and {self.devices} devices, wanted "
                "parallelism: data and devices of 2 or more; fsdp cuts one model up over several processes"
            )

    def alone(self) -> FabricConfig:
        """The same for one process, on the same kind of device: for what several would only do twice."""
        return replace(self, devices=1, num_nodes=1, parallelism="clients", strategy="auto")


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
        check_ranks(self.lora, self.federation)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, as they stand in config.yaml."""
        return asdict(self)
