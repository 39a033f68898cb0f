"""The configuration: typed blocks, each key documented at its field and checked at birth.

`configs/default.yaml` shows every key. Checks name the key in full (``federation.rounds``), what was got and what was
wanted. Nothing heavy is imported here, so that ``--help`` stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from fl_lightning.combinations import check_combination
from fl_lightning.errors import InputError

TINY_BASE = "bundled:tiny_base"
"""Name of the base model inside the package."""
EXAMPLE_DEPARTMENTS = "bundled:departments"
"""Name of the example data inside the package."""


def _check(ok: bool, key: str, got: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{key}: got {got!r}, wanted {wanted}")


def _check_null(block: Any, prefix: str) -> None:
    """Only fields typed ``X | None`` may be null; YAML's null would otherwise reach the comparisons below."""
    for item in fields(block):
        if getattr(block, item.name) is None and "None" not in str(item.type):
            raise InputError(f"{prefix}{item.name}: got null, wanted a value ({item.type})")


def _positive(key: str, value: float) -> None:
    _check(math.isfinite(value) and value > 0, key, value, "a finite number above 0")


def _at_least(key: str, value: int, low: int) -> None:
    _check(value >= low, key, value, f"an integer of at least {low}")


def _unit(key: str, value: float, *, zero: bool = True) -> None:
    ok = 0 <= value <= 1 if zero else 0 < value <= 1
    _check(ok, key, value, "a number in [0, 1]" if zero else "a number above 0 and at most 1")


def _one_of(key: str, value: object, choices: Collection[str]) -> None:
    _check(value in choices, key, value, "one of " + ", ".join(choices))


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
        _check_null(self, "model.")
        _check(bool(self.name_or_path.strip()), "model.name_or_path", self.name_or_path, "a Hub id or a path")


@dataclass
class LoraConfig:
    """The LoRA adapters: ``h = W0 x + (lora_alpha / r) B A x``."""

    r: int = 8
    """Rank."""
    lora_alpha: float = 16
    """Scale; the update is multiplied by lora_alpha / r."""
    lora_dropout: float = 0.05
    """Dropout on the input of A, in [0, 1)."""
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "lora.")
        _at_least("lora.r", self.r, 1)
        _positive("lora.lora_alpha", self.lora_alpha)
        _check(0 <= self.lora_dropout < 1, "lora.lora_dropout", self.lora_dropout, "a number in [0, 1)")
        ok = bool(self.target_modules) and all(name.strip() for name in self.target_modules)
        _check(ok, "lora.target_modules", self.target_modules, "at least one module name, such as q_proj")


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
        _check_null(self, "data.")
        _at_least("data.clients_per_dept", self.clients_per_dept, 1)
        _at_least("data.max_records", self.max_records, 1)
        _at_least("data.max_length", self.max_length, 8)
        _check(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "a number between 0 and 1")


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "training.")
        _at_least("training.local_epochs", self.local_epochs, 1)
        _positive("training.learning_rate", self.learning_rate)
        _at_least("training.batch_size", self.batch_size, 1)
        _at_least("training.accumulate_grad_batches", self.accumulate_grad_batches, 1)
        for key in ("max_grad_norm", "weight_decay", "proximal_mu"):
            value = getattr(self, key)
            _check(math.isfinite(value) and value >= 0, f"training.{key}", value, "a finite number of 0 or more")
        at_once = self.clients_at_once
        ok = at_once == "auto" or (isinstance(at_once, int) and at_once >= 1)
        _check(ok, "training.clients_at_once", at_once, "auto or 1 or more")


@dataclass
class FloraConfig:
    """Residual aggregation of clients into a department: ``θ + momentum Σ w_c (θ_c − θ)``."""

    momentum: float = 0.1
    """The step on the mean residual; the literature's server learning rate. In (0, 1]."""
    use_residual: bool = True
    """false gives the plain weighted mean."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.flora.")
        _unit("federation.flora.momentum", self.momentum, zero=False)


@dataclass
class ServerConfig:
    """What a department does with its clients' mean residual; flora.momentum is the step size, or the first one."""

    step: Literal["sgd", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = "sgd"
    """sgd moves by the residual; the others remember earlier ones. With the adaptive ones, fedadam, fedyogi and
    fedadagrad, an element moves by about flora.momentum a round, however small its residual: take 0.001 to 0.01."""
    schedule: Literal["constant", "linear", "cosine", "agreement"] = "constant"
    """How the step size goes on; agreement makes it smaller where clients pull apart."""
    end: float = 0.0
    """The step size after schedule_rounds, of linear and cosine."""
    schedule_rounds: int = 10
    """Rounds from flora.momentum to end, of linear and cosine."""
    beta1: float = 0.9
    """Of fedavgm, fedadam and fedyogi: share of the mean residual that is kept from round to round, in [0, 1)."""
    beta2: float = 0.99
    """The same of the squared residual, of fedadam and fedyogi."""
    tau: float = 1e-3
    """Of the adaptive ones: how large a residual counts as little."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.server.")
        block = "federation.server"
        _one_of(f"{block}.step", self.step, ("sgd", "fedavgm", "fedadam", "fedyogi", "fedadagrad"))
        _one_of(f"{block}.schedule", self.schedule, ("constant", "linear", "cosine", "agreement"))
        _unit(f"{block}.end", self.end)
        _at_least(f"{block}.schedule_rounds", self.schedule_rounds, 1)
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            _check(0 <= value < 1, f"{block}.{key}", value, "a number in [0, 1)")
        _positive(f"{block}.tau", self.tau)


@dataclass
class GuardConfig:
    """Protection of the mean against clients that are broken or hostile; each key belongs to the guards named."""

    name: Literal[
        "none", "norm_clip", "outlier", "krum", "multi_krum", "geometric_median", "median", "trimmed_mean"
    ] = "none"
    """How a department's clients are judged."""
    max_norm: float | None = None
    """norm_clip: longer updates are scaled down to it; null takes the median length of the round."""
    min_cosine: float = -0.5
    """outlier: an update that points farther away from the others is left out, in [-1, 1]."""
    max_z: float = 6.0
    """outlier: an update whose length is so many robust deviations above the others' is left out."""
    f: int = 1
    """krum, multi_krum: hostile clients to withstand; a department needs 2 f + 3 clients."""
    fraction: float = 0.2
    """trimmed_mean: share that is cut from each side, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.guard.")
        block = "federation.guard"
        choices = ("none", "norm_clip", "outlier", "krum", "multi_krum", "geometric_median", "median", "trimmed_mean")
        _one_of(f"{block}.name", self.name, choices)
        if self.max_norm is not None:
            _positive(f"{block}.max_norm", self.max_norm)
        _check(-1 <= self.min_cosine <= 1, f"{block}.min_cosine", self.min_cosine, "a number in [-1, 1]")
        _positive(f"{block}.max_z", self.max_z)
        _at_least(f"{block}.f", self.f, 0)
        _check(0 <= self.fraction < 0.5, f"{block}.fraction", self.fraction, "a number in [0, 0.5)")


@dataclass
class ClientClustersConfig:
    """Clusters of clients inside a department."""

    num_clusters: int = 2
    """1 turns them off: every client starts from its department's state."""
    global_mix: float = 0.2
    """Share of the department's state in a client's next start, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.client_clusters.")
        _at_least("federation.client_clusters.num_clusters", self.num_clusters, 1)
        _unit("federation.client_clusters.global_mix", self.global_mix)


@dataclass
class DeptClustersConfig:
    """Clusters of departments by their LoRA A-matrices, and mixing inside them."""

    enabled: bool = True
    """false leaves every department to itself."""
    method: Literal["kmeans"] = "kmeans"
    """k-means++ and Lloyd."""
    select: Literal["elbow"] = "elbow"
    """How the number of clusters is chosen."""
    min_clusters: int = 2
    """The smallest number of clusters."""
    max_clusters: int = 5
    """The largest number of clusters."""
    mixing_ratio: float = 0.3
    """Share of the cluster's average in a department's next state, in [0, 1]."""
    mix: Literal["a", "all"] = "a"
    """a mixes the A-matrices only, all mixes B too."""
    representation: Literal["delta", "raw", "subspace"] = "delta"
    """delta compares the directions of A - A0, raw compares A, subspace the row spaces of A."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.dept_clusters.")
        block = "federation.dept_clusters"
        _one_of(f"{block}.method", self.method, ("kmeans",))
        _one_of(f"{block}.select", self.select, ("elbow",))
        _at_least(f"{block}.min_clusters", self.min_clusters, 1)
        wanted = f"at least min_clusters ({self.min_clusters})"
        _check(self.max_clusters >= self.min_clusters, f"{block}.max_clusters", self.max_clusters, wanted)
        _unit(f"{block}.mixing_ratio", self.mixing_ratio)
        _one_of(f"{block}.mix", self.mix, ("a", "all"))
        _one_of(f"{block}.representation", self.representation, ("delta", "raw", "subspace"))


@dataclass
class FederationConfig:
    """The rounds."""

    rounds: int = 10
    """Number of rounds."""
    share: Literal["all", "a", "b", "freeze_a", "alternate", "none"] = "all"
    """all sends A and B; a sends A and keeps B with the client; b the reverse; freeze_a trains and sends B alone;
    alternate B in odd rounds and A in even ones; none sends nothing."""
    clients_per_round: int | None = None
    """So many clients of each department take part in a round; null goes by client_fraction."""
    client_fraction: float = 1.0
    """Share of each department's clients that takes part in a round, at least one client; in (0, 1]."""
    min_clients: int = 1
    """A department with fewer valid updates in a round keeps its state."""
    max_update_norm: float = 1000.0
    """An update that moved farther than so many times the norm of the shared start is left out."""
    measure_error: bool = True
    """Log how far the mean of the factors is from the mean of their products, where both are sent."""
    weighting: Literal["examples", "tokens", "uniform", "loss_improvement", "contribution"] = "examples"
    """What a client's weight in its department's mean goes by; contribution evaluates the mean without each client."""
    flora: FloraConfig = field(default_factory=FloraConfig)
    """Clients into departments."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """What a department does with the clients' mean residual."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Protection of the mean."""
    client_clusters: ClientClustersConfig = field(default_factory=ClientClustersConfig)
    """Clusters of clients inside a department."""
    dept_clusters: DeptClustersConfig = field(default_factory=DeptClustersConfig)
    """Clusters of departments."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "federation.")
        _at_least("federation.rounds", self.rounds, 1)
        _one_of("federation.share", self.share, ("all", "a", "b", "freeze_a", "alternate", "none"))
        _one_of(
            "federation.weighting",
            self.weighting,
            ("examples", "tokens", "uniform", "loss_improvement", "contribution"),
        )
        _unit("federation.client_fraction", self.client_fraction, zero=False)
        _at_least("federation.min_clients", self.min_clients, 1)
        _positive("federation.max_update_norm", self.max_update_norm)
        if self.clients_per_round is not None:
            _at_least("federation.clients_per_round", self.clients_per_round, 1)
            wanted = "1.0 where clients_per_round is given; choose one of the two"
            _check(self.client_fraction == 1.0, "federation.client_fraction", self.client_fraction, wanted)
        check_combination(self)


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "fabric.")
        _one_of("fabric.accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        _one_of("fabric.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _one_of("fabric.parallelism", self.parallelism, ("clients", "data"))
        _at_least("fabric.devices", self.devices, 1)
        _at_least("fabric.num_nodes", self.num_nodes, 1)
        if self.strategy == "fsdp" and (self.parallelism != "data" or self.devices * self.num_nodes == 1):
            raise InputError(
                f"fabric.strategy: got fsdp with parallelism {self.parallelism} and {self.devices} devices, wanted "
                "parallelism: data and devices of 2 or more; fsdp cuts one model up over several processes"
            )


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

    def __post_init__(self) -> None:
        """Check that every logger names its class. The rest is the logger's own business."""
        _check_null(self, "logging.")
        wanted = "a mapping with class_path and, where wanted, init_args"
        for index, logger in enumerate(self.loggers):
            ok = isinstance(logger.get("class_path"), str) and set(logger) <= {"class_path", "init_args"}
            _check(ok and isinstance(logger.get("init_args", {}), dict), f"logging.loggers[{index}]", logger, wanted)


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
        _check_null(self, "retention.")
        _at_least("retention.client_exports", self.client_exports, 0)
        _at_least("retention.checkpoints", self.checkpoints, 0)
        _at_least("retention.best", self.best, 0)


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_null(self, "")
        _at_least("seed", self.seed, 0)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, as they stand in config.yaml."""
        return asdict(self)
