"""The ``personal`` block: which adapters a client chooses between, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from fl_lightning.config.checks import Block, FractionBelowOne, NonNegativeFloat, PositiveFraction, PositiveInt, check

LevelName: TypeAlias = Literal["own", "department", "cluster", "root", "base"]
"""Adapters that a client can take: trained by itself alone, of its department, of its department's cluster, of all
departments together, or none."""


@dataclass
class PersonalConfig(Block, key="personal"):
    """What personalize gives each client, chosen by the client's selection records."""

    levels: list[LevelName] = field(default_factory=lambda: list(get_args(LevelName)))
    """Levels to choose from; own is always one of them, unless own is off."""
    own: Literal["off", "during", "after", False] = "after"
    """When clients' own adapters, which are never averaged, are trained: after the run, by personalize; during the run,
    in every round that the client takes part in; or not at all, and then personalize chooses among the shared ones."""
    own_adapters: PositiveInt = 1
    """own: after: how many own adapters each client trains, from other starts and in other orders; all are in its
    mixture. Each costs as much training as the first one."""
    ditto_lambda: NonNegativeFloat = 0.0
    """own: during: Ditto's pull of own adapters towards the department's adapter at the start of the round, as
    ditto_lambda / 2 times the squared distance in each client's loss; 0 turns it off."""
    apfl_alpha: PositiveFraction = 1.0
    """own: during: APFL's weight of a client's own adapter in its mixture with the department's, in which it trains and
    is used; 1 turns it off."""
    apfl_rate: NonNegativeFloat = 0.0
    """own: during: rate of the gradient step that APFL takes on each client's weight at the beginning of each of its
    rounds, from apfl_alpha on; 0 leaves it there."""
    fedalt_weight: FractionBelowOne = 0.0
    """own: during: FedALT's weight of the mean of the other clients' own adapters, beside which a client's own trains
    and is used; 0 turns it off. With it the mean of own adapters leaves the clients."""
    fedalt_gate: bool = False
    """own: during: FedALT with weights of the two that a trained gate of each layer gives by its input, in the place of
    fedalt_weight. personalize measures such adapters; PEFT has no format for them, so nothing else can use them."""
    choose: Literal["level", "mixture"] = "mixture"
    """level gives each client the level with the lowest loss, mixture a weight for each."""
    prior: NonNegativeFloat = 20.0
    """How many target tokens the department's choice is worth in a client's choice; a client with more tokens of its
    own decides by itself."""
    root: Literal["mean", "trained"] = "mean"
    """The level root: the mean of all departments' adapters, which costs no training, or an adapter that all clients
    train as one department, in a run of its own."""
    mates: Literal["off", "department", "all", False] = "off"
    """Whose own adapters a client can take besides the levels, as the level mates: of the other clients of its
    department, or of all other clients. With it own adapters leave the clients that trained them."""
    adapter: Literal["average", "svd", "distill"] = "average"
    """How one adapter is made of a client's mixture: the weighted sum of the products, of the rank of all levels
    together; the nearest one of the rank of own adapters; or that one trained on the probabilities of the mixture. On
    selection records it must be better than the client's level, which is the one adapter otherwise."""
    distill_epochs: PositiveInt = 4
    """adapter: distill: epochs over each client's training records."""
    refit: bool = False
    """Train all levels again, selection records included, after these have chosen: it doubles the training."""

    @property
    def mixes_own(self) -> bool:
        """Whether own adapters are trained and used in a mixture, by APFL or FedALT."""
        return self.apfl_alpha < 1 or self.uses_fedalt

    @property
    def uses_fedalt(self) -> bool:
        """Whether own adapters stand beside the mean of the others', which leaves the clients."""
        return self.fedalt_weight > 0 or self.fedalt_gate

    @property
    def learns_mixture(self) -> bool:
        """Whether clients learn the weights of that mixture."""
        return self.apfl_rate > 0 or self.fedalt_gate

    def __post_init__(self) -> None:
        """Check the ranges, and the levels."""
        super().__post_init__()
        self.own, self.mates = self.own or "off", self.mates or "off"  # which YAML reads as false
        choices, first = get_args(LevelName), self.levels[:1]
        ok = len(set(self.levels)) == len(self.levels) and set(self.levels) <= set(choices) and first == ["own"]
        check(ok, "personal.levels", f"own, and after it some of {', '.join(choices[1:])}", self.levels)
        for name, value, is_off in (
            ("ditto_lambda", self.ditto_lambda, self.ditto_lambda == 0),
            ("apfl_alpha", self.apfl_alpha, self.apfl_alpha == 1),
            ("fedalt_weight", self.fedalt_weight, self.fedalt_weight == 0),
            ("fedalt_gate", self.fedalt_gate, not self.fedalt_gate),
        ):
            expected = "the default, or personal.own: during (own adapters that train beside the department's)"
            check(is_off or self.own == "during", f"personal.{name}", expected, value)
        expected = "0, or a personal.apfl_alpha below 1, at which each client's weight begins"
        check(self.apfl_rate == 0 or self.apfl_alpha < 1, "personal.apfl_rate", expected, self.apfl_rate)
        expected = "1, or personal.own: after (during trains one own adapter in the rounds of the run)"
        check(self.own_adapters == 1 or self.own == "after", "personal.own_adapters", expected, self.own_adapters)
        methods = [self.ditto_lambda > 0, self.apfl_alpha < 1, self.fedalt_weight > 0, self.fedalt_gate]
        got = f"ditto_lambda {self.ditto_lambda}, apfl_alpha {self.apfl_alpha}, fedalt_weight {self.fedalt_weight}"
        got += f", fedalt_gate {self.fedalt_gate}"
        check(sum(methods) <= 1, "personal", "one method for own adapters", got)
        ok = self.own != "off" or self.mates == "off"
        check(ok, "personal.mates", "off, or personal.own: after or during, which train own adapters", self.mates)
        expected = "off, or personal.fedalt_gate: false (gates, without which the adapters are of no use, stay)"
        check(self.mates == "off" or not self.fedalt_gate, "personal.mates", expected, self.mates)
        expected = "average, or personal.fedalt_gate: false (adapters with gates are no factors to make one adapter of)"
        check(self.adapter == "average" or not self.fedalt_gate, "personal.adapter", expected, self.adapter)
        ok = self.own != "off" or len(self.levels) > 1
        check(ok, "personal.levels", "a level besides own, which personal.own: off leaves out", self.levels)
