"""The ``federation`` block: the rounds, and how a department's clients are aggregated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from fl_lightning.config.checks import (
    Block,
    Fraction,
    FractionBelowOne,
    Interval,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    check,
)
from fl_lightning.config.clusters import ClientClustersConfig, DeptClustersConfig, HierarchyConfig
from fl_lightning.config.privacy import MaskingConfig, PrivacyConfig
from fl_lightning.config.schedule import ScheduleConfig

ShareName: TypeAlias = Literal["all", "a", "b", "freeze_a", "alternate", "none", "central"]
"""Share policies of `fl_lightning.aggregation.sharing`."""
WeightingName: TypeAlias = Literal["examples", "tokens", "uniform", "loss_improvement", "contribution"]
"""Functions of `fl_lightning.aggregation.weighting`."""
GuardName: TypeAlias = Literal[
    "none",
    "norm_clip",
    "outlier",
    "krum",
    "multi_krum",
    "geometric_median",
    "median",
    "trimmed_mean",
    "dp",
]
"""Functions of `fl_lightning.aggregation.robust`; besides them none, and dp, which is `fl_lightning.privacy`."""
ServerStepName: TypeAlias = Literal["sgd", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
"""Functions of `fl_lightning.aggregation.server_optimizers`."""
ScheduleName: TypeAlias = Literal["constant", "linear", "cosine", "agreement"]
"""Schedules of `fl_lightning.aggregation.server_optimizers.step_size`."""
ProductCombiner: TypeAlias = Literal["stack", "residual", "svd"]
"""Functions of `fl_lightning.aggregation.products.department_product`."""
CombinerName: TypeAlias = Literal["flora", "fedavg", ProductCombiner]
"""How a department's clients are combined."""


@dataclass
class FloraConfig(Block, key="federation.flora"):
    """Residual aggregation of clients into a department: ``θ + momentum Σ w_c (θ_c − θ)``."""

    momentum: PositiveFraction = 0.1
    """Step size on the mean residual, the server learning rate of the literature; in (0, 1]."""
    use_residual: bool = True
    """false takes the plain weighted mean."""


@dataclass
class ServerConfig(Block, key="federation.server"):
    """Server optimizer: how a department's state follows its clients' mean residual.

    flora.momentum is the step size, or the initial one of a schedule.
    """

    step: ServerStepName = "sgd"
    """sgd adds the residual; the others keep moments of earlier ones. With the adaptive ones (fedadam, fedyogi,
    fedadagrad) an element moves by about flora.momentum per round, however small its residual: use 0.001 to 0.01."""
    schedule: ScheduleName = "constant"
    """Schedule of the step size; agreement reduces it if clients' updates disagree."""
    end: Fraction = 0.0
    """linear, cosine: final step size, in [0, 1]."""
    schedule_rounds: PositiveInt = 10
    """linear, cosine: rounds from flora.momentum to end."""
    beta1: FractionBelowOne = 0.9
    """fedavgm, fedadam, fedyogi: decay of the first moment (mean residual), in [0, 1)."""
    beta2: FractionBelowOne = 0.99
    """fedadam, fedyogi: decay of the second moment (squared residual), in [0, 1)."""
    tau: PositiveFloat = 1e-3
    """fedadam, fedyogi, fedadagrad: τ, added to √v in the denominator (adaptivity)."""


@dataclass
class GuardConfig(Block, key="federation.guard"):
    """Robust aggregation, against broken or malicious clients. Each key names the guards that use it."""

    name: GuardName = "none"
    """Robust aggregation rule; dp clips updates and adds noise, with the numbers under federation.privacy."""
    max_norm: PositiveFloat | None = None
    """norm_clip: norm to which longer updates are scaled down; null takes the round's median norm."""
    min_cosine: Annotated[float, Interval(-1, 1)] = -0.5
    """outlier: reject an update whose cosine to the mean of the others is lower, in [-1, 1]."""
    max_z: PositiveFloat = 6.0
    """outlier: reject an update whose norm is more than this many robust deviations above the others'."""
    f: NonNegativeInt = 1
    """krum, multi_krum: number of malicious clients to withstand; a department needs 2 f + 3 clients."""
    fraction: Annotated[float, Interval(0, 0.5, open_high=True)] = 0.2
    """trimmed_mean: share that is cut off at each end, in [0, 0.5)."""


@dataclass
class FederationConfig(Block, key="federation"):
    """The rounds: what clients share, and how updates are weighted, guarded, averaged, clustered and mixed."""

    rounds: PositiveInt = 10
    """Number of rounds; under schedule.mode: buffered each one is a step of one department."""
    share: ShareName = "all"
    """all sends A and B; a sends A and keeps B with the client; b the reverse; freeze_a trains and sends B only;
    alternate sends B in odd rounds and A in even ones; none sends nothing; central trains on all records in one
    place."""
    share_layers: list[int] | None = None
    """Indices of the decoder layers whose adapters are shared; those of the others stay with each client. null shares
    all."""
    combiner: CombinerName = "flora"
    """How a department's clients are averaged: flora steps towards the mean of the factors, fedavg takes that mean;
    stack and residual keep the exact mean of the products BA, svd its best approximation at each client's rank."""
    clients_per_round: PositiveInt | None = None
    """Number of clients of each department that take part in a round; null uses client_fraction."""
    client_fraction: PositiveFraction = 1.0
    """Share of each department's clients that take part in a round, at least one client; in (0, 1]."""
    min_clients: PositiveInt = 1
    """A department with fewer valid updates in a round keeps its state."""
    max_update_norm: PositiveFloat = 1000.0
    """Reject an update whose norm is more than this many times that of the shared start."""
    measure_error: bool = True
    """Log the distance of the mean of the factors from the mean of their products, if both factors are sent."""
    weighting: WeightingName = "examples"
    """Weights of the clients in their department's mean; contribution evaluates the mean without each client."""
    flora: FloraConfig = field(default_factory=FloraConfig)
    """Aggregation of clients into departments."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Server optimizer of the departments."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Robust aggregation."""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Settings of guard.name: dp."""
    secure_aggregation: bool = False
    """Clients send masked updates, of which only a department's sum can be read; see docs/privacy.md for what this
    rules out."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Settings of secure_aggregation."""
    client_clusters: ClientClustersConfig = field(default_factory=ClientClustersConfig)
    """Clusters of clients inside a department."""
    dept_clusters: DeptClustersConfig = field(default_factory=DeptClustersConfig)
    """Clusters of departments."""
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    """Groups of departments, and teams of clients."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Synchronous or buffered rounds, and clients' speeds in virtual time."""

    @property
    def noise_in_shares(self) -> bool:
        """Whether clients clip and add the noise of differential privacy themselves, each a share of it."""
        return self.secure_aggregation and self.guard.name == "dp"

    def __post_init__(self) -> None:
        """Check the ranges, and that the size of a round is given once."""
        super().__post_init__()
        fits = self.clients_per_round is None or self.client_fraction == 1
        expected = "1.0 if clients_per_round is set (choose one of the two)"
        check(fits, "federation.client_fraction", expected, self.client_fraction)
        layers = self.share_layers
        fits = layers is None or (len(set(layers)) == len(layers) > 0 and min(layers) >= 0)
        check(fits, "federation.share_layers", "different indices of decoder layers from 0, or null", layers)
