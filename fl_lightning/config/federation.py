"""The ``federation`` block: the rounds, and how a department's clients are aggregated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fl_lightning.config.checks import at_least, check, check_null, one_of, positive, unit
from fl_lightning.config.clusters import ClientClustersConfig, DeptClustersConfig, HierarchyConfig
from fl_lightning.config.privacy import PrivacyConfig


@dataclass
class FloraConfig:
    """Residual aggregation of clients into a department: ``θ + momentum Σ w_c (θ_c − θ)``."""

    momentum: float = 0.1
    """The step on the mean residual; the literature's server learning rate. In (0, 1]."""
    use_residual: bool = True
    """false gives the plain weighted mean."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.flora.")
        unit("federation.flora.momentum", self.momentum, zero=False)


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
        check_null(self, "federation.server.")
        block = "federation.server"
        one_of(f"{block}.step", self.step, ("sgd", "fedavgm", "fedadam", "fedyogi", "fedadagrad"))
        one_of(f"{block}.schedule", self.schedule, ("constant", "linear", "cosine", "agreement"))
        unit(f"{block}.end", self.end)
        at_least(f"{block}.schedule_rounds", self.schedule_rounds, 1)
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            check(0 <= value < 1, f"{block}.{key}", value, "a number in [0, 1)")
        positive(f"{block}.tau", self.tau)


@dataclass
class GuardConfig:
    """Protection of the mean against clients that are broken or hostile; each key belongs to the guards named."""

    name: Literal[
        "none", "norm_clip", "outlier", "krum", "multi_krum", "geometric_median", "median", "trimmed_mean", "dp"
    ] = "none"
    """How a department's clients are judged; dp clips them and adds noise, by the numbers under federation.privacy."""
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
        check_null(self, "federation.guard.")
        block = "federation.guard"
        choices = (
            "none",
            "norm_clip",
            "outlier",
            "krum",
            "multi_krum",
            "geometric_median",
            "median",
            "trimmed_mean",
            "dp",
        )
        one_of(f"{block}.name", self.name, choices)
        if self.max_norm is not None:
            positive(f"{block}.max_norm", self.max_norm)
        check(-1 <= self.min_cosine <= 1, f"{block}.min_cosine", self.min_cosine, "a number in [-1, 1]")
        positive(f"{block}.max_z", self.max_z)
        at_least(f"{block}.f", self.f, 0)
        check(0 <= self.fraction < 0.5, f"{block}.fraction", self.fraction, "a number in [0, 0.5)")


@dataclass
class FederationConfig:
    """The rounds: what clients share, and how it is weighed, guarded, averaged, clustered and mixed."""

    rounds: int = 10
    """Number of rounds."""
    share: Literal["all", "a", "b", "freeze_a", "alternate", "none", "central"] = "all"
    """all sends A and B; a sends A and keeps B with the client; b the reverse; freeze_a trains and sends B alone;
    alternate B in odd rounds and A in even ones; none sends nothing; central trains on all records in one place."""
    combiner: Literal["flora", "fedavg", "stack", "residual", "svd"] = "flora"
    """How a department's clients come together: flora steps towards the mean of the factors, fedavg takes it; stack and
    residual keep the exact mean of the products, svd its best approximation at each client's rank."""
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
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """The numbers of guard.name: dp."""
    client_clusters: ClientClustersConfig = field(default_factory=ClientClustersConfig)
    """Clusters of clients inside a department."""
    dept_clusters: DeptClustersConfig = field(default_factory=DeptClustersConfig)
    """Clusters of departments."""
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    """Groups above the departments, and teams inside them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.")
        at_least("federation.rounds", self.rounds, 1)
        one_of("federation.share", self.share, ("all", "a", "b", "freeze_a", "alternate", "none", "central"))
        one_of("federation.combiner", self.combiner, ("flora", "fedavg", "stack", "residual", "svd"))
        one_of(
            "federation.weighting",
            self.weighting,
            ("examples", "tokens", "uniform", "loss_improvement", "contribution"),
        )
        unit("federation.client_fraction", self.client_fraction, zero=False)
        at_least("federation.min_clients", self.min_clients, 1)
        positive("federation.max_update_norm", self.max_update_norm)
        if self.clients_per_round is not None:
            at_least("federation.clients_per_round", self.clients_per_round, 1)
            wanted = "1.0 where clients_per_round is given; choose one of the two"
            check(self.client_fraction == 1.0, "federation.client_fraction", self.client_fraction, wanted)
