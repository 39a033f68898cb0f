import pytest

from fl_lightning import FederatedTrainer, InputError
from fl_lightning.config import (
    ClientClustersConfig,
    DeptClustersConfig,
    FederationConfig,
    FloraConfig,
    GuardConfig,
    HierarchyConfig,
    LoraConfig,
    RunConfig,
    ServerConfig,
)
from fl_lightning.config.compatibility import INCOMPATIBLE, check_compatible


def config(share, clusters=1, *, guard="none", server=None, weighting="examples", residual=True, other=None, **dept):
    changes = {"client_clusters": ClientClustersConfig(num_clusters=clusters), **(other or {})}
    federation = FederationConfig(
        share=share,
        **changes,
        weighting=weighting,
        guard=GuardConfig(name=guard),
        server=ServerConfig(**(server or {})),
        flora=FloraConfig(use_residual=residual),
        dept_clusters=DeptClustersConfig(**{"enabled": bool(dept), **dept}),
    )
    check_compatible(federation, LoraConfig())
    return federation


BAD = {
    "layers of products": (("all", 1), {"other": {"combiner": "stack", "share_layers": [0]}}, "combiner: flora"),
    "departments by layers that clients keep": (
        ("all", 1),
        {"other": {"share_layers": [0]}, "mix": "a"},
        "no-dept-clus",
    ),
    "clients by layers that they keep": (
        ("all", 1),
        {
            "other": {
                "share_layers": [0],
                "client_clusters": ClientClustersConfig(num_clusters=2, representation="delta"),
            }
        },
        "representation: raw",
    ),
    "the worth of some layers": (
        ("all", 1),
        {"other": {"share_layers": [0]}, "weighting": "contribution"},
        "weighting",
    ),
    "departments without anything sent": (("none", 1), {"mix": "all"}, "--no-dept-clustering"),
    "clients without anything sent": (("none", 2), {}, "--num-clusters 1"),
    "departments by an A that nobody trains": (("freeze_a", 1), {"mix": "a"}, "--no-dept-clustering"),
    "mixing an A that clients keep": (("b", 1), {"mix": "a"}, "mix: all or predictions"),
    "a step without a residual": (("all", 1), {"server": {"step": "fedadam"}, "residual": False}, "use_residual: true"),
    "agreement without weights": (("all", 1), {"guard": "median", "server": {"schedule": "agreement"}}, "guard.name"),
    "weights in vain": (
        ("all", 1),
        {"guard": "trimmed_mean", "weighting": "tokens"},
        "weighting: examples",
    ),
    "the worth of half an adapter": (("a", 1), {"weighting": "contribution"}, "share: all"),
    "a step of a combiner that takes the mean": (
        ("all", 1),
        {"other": {"combiner": "fedavg"}, "server": {"step": "fedadam"}},
        "combiner: flora",
    ),
    "products of one factor": (("a", 1), {"other": {"combiner": "stack"}}, "share: all"),
    "a guard of products": (("all", 1), {"other": {"combiner": "svd"}, "guard": "median"}, "guard.name: none"),
    "products and client clusters": (("all", 2), {"other": {"combiner": "residual"}}, "--num-clusters 1"),
    "the worth of a client in products": (
        ("all", 1),
        {"other": {"combiner": "residual"}, "weighting": "contribution"},
        "another weighting",
    ),
    "departments without an A of their own": (
        ("all", 1),
        {"other": {"combiner": "svd"}, "mix": "all"},
        "combiner: residual",
    ),
    "clusters of one pool": (("central", 2), {"other": {"combiner": "fedavg"}}, "--num-clusters 1"),
    "a mean of one pool": (("central", 1), {"other": {"combiner": "flora"}}, "combiner: fedavg"),
    "a sample of one pool": (
        ("central", 1),
        {"other": {"combiner": "fedavg", "client_fraction": 0.5}},
        "client_fraction: 1.0",
    ),
    "privacy by unequal weights": (("all", 1), {"guard": "dp"}, "weighting: uniform"),
    "privacy and client clusters": (("all", 2), {"guard": "dp", "weighting": "uniform"}, "--num-clusters 1"),
    "privacy and a step by the clients' agreement": (
        ("all", 1),
        {"guard": "dp", "weighting": "uniform", "server": {"schedule": "agreement"}},
        "another server.schedule",
    ),
    "privacy and a least number of clients": (
        ("all", 1),
        {"guard": "dp", "weighting": "uniform", "other": {"min_clients": 2}},
        "min_clients: 1",
    ),
    "products of a factor that stays": (("a", 1), {"mix": "a", "representation": "product"}, "share: all"),
    "clients' fits by losses": (
        ("all", 1),
        {"mix": "a", "representation": "cross_loss", "select": "dynamic"},
        "another dept_clusters.select",
    ),
    "privacy and clusters by clients": (
        ("all", 1),
        {"mix": "a", "select": "dynamic", "guard": "dp", "weighting": "uniform"},
        "another dept_clusters.select",
    ),
    "privacy and weights by clients' losses": (
        ("all", 1),
        {"mix": "predictions", "guard": "dp", "weighting": "uniform"},
        "mix: a or all",
    ),
    "groups and mixed predictions": (
        ("all", 1),
        {"mix": "predictions", "other": {"hierarchy": HierarchyConfig({"all": ["hr", "it"]})}},
        "mix: a or all, or hierarchy.groups",
    ),
    "clients by an A that they keep": (
        ("b", 2),
        {"other": {"client_clusters": ClientClustersConfig(2, 0.2, "agglomerative", "delta")}},
        "share: all",
    ),
    "groups without anything sent": (
        ("none", 1),
        {"other": {"hierarchy": HierarchyConfig({"trade": ["finance"]})}},
        "hierarchy.groups: {}",
    ),
    "groups of products": (
        ("all", 1),
        {"other": {"hierarchy": HierarchyConfig({"trade": ["finance"]}), "combiner": "residual"}},
        "combiner: flora or fedavg",
    ),
    "a guard without anything sent": (("none", 1), {"guard": "krum"}, "guard.name: none"),
}


@pytest.mark.parametrize(("arguments", "dept", "fix"), BAD.values(), ids=BAD)
def test_incompatible_choices_are_refused_with_their_reason_and_the_way_out(arguments, dept, fix):
    with pytest.raises(InputError, match=f"federation: .*; expected .*{fix}.*, got share {arguments[0]}, "):
        config(*arguments, **dept)


@pytest.mark.parametrize("combiner", ["fedavg", "residual"])
def test_combiners_that_keep_an_a_go_with_clusters_of_departments(combiner):
    config("all", 1, other={"combiner": combiner}, mix="a")


@pytest.mark.parametrize("combiner", ["fedavg", "residual", "stack"])
def test_teams_go_with_everything_since_they_are_departments(combiner):
    config("all", 1, other={"combiner": combiner, "hierarchy": HierarchyConfig({"shell": ["it/client_0"]})})


def test_every_row_of_the_table_is_tested():
    assert len(BAD) == len(INCOMPATIBLE)


@pytest.mark.parametrize(
    ("arguments", "dept"),
    [(("all", 2), {"mix": "a"}), (("a", 2), {"mix": "a"}), (("b", 2), {"mix": "all"}), (("alternate", 2), {"mix": "a"}),
     (("freeze_a", 2), {}), (("none", 1), {})],
)  # fmt: skip
def test_what_makes_sense_is_taken(arguments, dept):
    config(*arguments, **dept)


def test_run_and_trainer_refuse_incompatible_choices():
    federation = FederationConfig(share="none")
    with pytest.raises(InputError, match="federation: nothing is sent"):
        RunConfig(federation=federation)
    with pytest.raises(InputError, match="federation: nothing is sent"):
        FederatedTrainer(federation=federation)
