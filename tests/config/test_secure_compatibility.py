from re import search

import pytest
from config_cases import refused

from fl_lightning import FederatedTrainer, InputError
from fl_lightning.config import FederationConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.secure_compatibility import SECURE

ON = ["--federation.secure_aggregation", "true"]
FIT = [*ON, "--num-clusters", "1"]
PRIVATE = [*FIT, "--federation.guard.name", "dp", "--federation.weighting", "uniform"]
BAD = {
    "a clipping norm that adapts": (
        [*PRIVATE, "--federation.privacy.target_quantile", "0.5"],
        "federation.privacy.target_quantile: the norm follows how many updates are clipped, and each client clips its",
    ),
    "noise of curious clients only": (
        [*PRIVATE, "--federation.privacy.curious_clients", "3"],
        "federation.privacy.curious_clients: a sum of masking.min_clients needs the noise of one that is not",
    ),
    "guard": ([*FIT, "--federation.guard.name", "krum"], "federation.guard.name: guards compare single updates"),
    "products": ([*FIT, "--federation.combiner", "residual"], "federation.combiner: products of single clients"),
    "nothing sent": (
        [*FIT, "--federation.share", "none", "--no-dept-clustering"],
        "federation.share: clients send no updates",
    ),
    "private factors": ([*FIT, "--federation.share", "a"], "federation.share: .* what single clients keep"),
    "private layers": (
        [*FIT, "--federation.share_layers", "[0]", "--no-dept-clustering"],
        "federation.share_layers: .* what single clients keep",
    ),
    "weights by contribution": (
        [*FIT, "--federation.weighting", "contribution"],
        "federation.weighting: clients weigh by numbers that the server compares",
    ),
    "schedule by agreement": (
        [*FIT, "--federation.server.schedule", "agreement"],
        "federation.server.schedule: the step follows the lengths",
    ),
    "client clusters": (ON, "federation.client_clusters.num_clusters: clients are clustered by their single updates"),
    "clusters by fits": (
        [*FIT, "--federation.dept_clusters.select", "dynamic"],
        "federation.dept_clusters.select: the fits of single clients",
    ),
    "late clients": (
        [*FIT, "--federation.schedule.mode", "buffered", "--federation.schedule.clients.speed", "constant"],
        "federation.schedule.mode: clients that finish at different times",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_needs_single_updates_is_refused_with_its_reason(arguments, message):
    said = refused(*arguments)
    assert search(message, said)
    assert search("; expected .* with secure_aggregation: true, got ", said)


def test_every_row_of_the_table_is_tested():
    assert len(BAD) == len(SECURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--personal.mates", "all"], "personal.mates: own adapters are lent as they are; expected off, got all"),
        (
            ["--personal.own", "during", "--personal.fedalt_weight", "0.5"],
            "personal.fedalt_weight: own adapters of single clients are averaged; expected 0, got 0.5",
        ),
        (["--personal.root", "trained"], "personal.root: its adapter is trained without masks; expected mean"),
        (["--retention.client_exports", "2"], "retention.client_exports: the server has no client's adapter"),
        (
            ["--max-records", "2000"],
            r"federation.masking.max_weight: a client may weigh up to 2000 \(weighting: examples\); expected at least",
        ),
        (["--federation.weighting", "tokens"], r"may weigh up to 65536 \(weighting: tokens\); .*, got 1024"),
    ],
)
def test_so_is_what_other_blocks_need(arguments, message):
    said = refused(*FIT, *arguments)
    assert search(message, said)
    assert said.endswith("with federation.secure_aggregation: true")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--federation.share", "alternate"],
        ["--federation.share", "freeze_a", "--no-dept-clustering"],
        ["--federation.combiner", "fedavg"],
        PRIVATE,
        [*PRIVATE, "--federation.privacy.curious_clients", "4", "--federation.masking.min_clients", "5"],
        ["--federation.privacy.target_quantile", "0.5"],
        ["--federation.server.step", "fedadam"],
        ["--federation.weighting", "uniform", "--max-records", "100000"],
        ["--federation.weighting", "tokens", "--federation.masking.max_weight", "65536"],
        ["--federation.hierarchy.groups", "{trade: [finance, customer_support]}"],
        ["--personal.own", "during", "--personal.ditto_lambda", "0.1"],
        ["--training.early_stopping", "true", "--data.selection_fraction", "0.2"],
    ],
)
def test_what_needs_sums_only_is_taken(arguments):
    assert parse_config([*FIT, *arguments]).federation.secure_aggregation


def test_the_trainer_refuses_it_too():
    with pytest.raises(InputError, match="client_clusters"):
        FederatedTrainer(federation=FederationConfig(secure_aggregation=True))
