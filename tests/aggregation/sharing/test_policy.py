import pytest

from fl_lightning import InputError
from fl_lightning.aggregation.sharing import SHARE_POLICIES, share_policy
from fl_lightning.config import FederationConfig

TABLE = {
    # name: trained in rounds 1 to 3, sent in rounds 1 to 3, kept
    "all": (["all"] * 3, ["all"] * 3, "none"),
    "a": (["all"] * 3, ["a"] * 3, "b"),
    "b": (["all"] * 3, ["b"] * 3, "a"),
    "freeze_a": (["b"] * 3, ["b"] * 3, "none"),
    "alternate": (["b", "a", "b"], ["b", "a", "b"], "none"),
    "none": (["all"] * 3, ["none"] * 3, "all"),
    "central": (["all"] * 3, ["all"] * 3, "none"),
}


def test_the_table_is_complete_and_the_config_takes_each_name():
    assert SHARE_POLICIES.keys() == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_who_trains_sends_and_keeps_what(name):
    trains, sends, keeps = TABLE[name]
    policy = share_policy(name)
    assert [policy.trainable_factor(r) for r in (1, 2, 3)] == trains
    assert [policy.shared_factor(r) for r in (1, 2, 3)] == sends
    assert policy.private_factor == keeps


@pytest.mark.parametrize("name", TABLE)
def test_every_trained_factor_is_sent_or_kept_and_nothing_is_both(name):
    policy = share_policy(name)
    parts = {"all": {"a", "b"}, "a": {"a"}, "b": {"b"}, "none": set()}
    for round_num in (1, 2, 3):
        sends, keeps = parts[policy.shared_factor(round_num)], parts[policy.private_factor]
        assert parts[policy.trainable_factor(round_num)] <= sends | keeps
        assert not sends & keeps


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="got 'freeze', wanted one of all, .*did you mean 'freeze_a'"):
        share_policy("freeze")


@pytest.mark.parametrize("name", TABLE)
def test_the_config_knows_the_name(name):
    from fl_lightning.config import ClientClustersConfig, DeptClustersConfig

    off = {"client_clusters": ClientClustersConfig(num_clusters=1), "dept_clusters": DeptClustersConfig(enabled=False)}
    combiner = "fedavg" if name == "central" else "flora"
    assert FederationConfig(share=name, combiner=combiner, **off).share == name


def test_central_alone_pools():
    assert [name for name, policy in SHARE_POLICIES.items() if policy.is_central] == ["central"]
