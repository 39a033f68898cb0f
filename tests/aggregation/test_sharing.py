import pytest

from fl_lightning import InputError
from fl_lightning.aggregation.sharing import SHARE_POLICIES, share_policy
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FederationConfig

TABLE = {
    # name: trainable and shared factor in rounds 1 to 3, private factor
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
def test_factors_of_each_policy(name):
    trainable, shared, private = TABLE[name]
    policy = share_policy(name)
    assert [policy.trainable_factor(r) for r in (1, 2, 3)] == trainable
    assert [policy.shared_factor(r) for r in (1, 2, 3)] == shared
    assert policy.private_factor == private


@pytest.mark.parametrize("name", TABLE)
def test_every_trained_factor_is_shared_or_private_and_none_is_both(name):
    policy = share_policy(name)
    parts = {"all": {"a", "b"}, "a": {"a"}, "b": {"b"}, "none": set()}
    for round_num in (1, 2, 3):
        shared, private = parts[policy.shared_factor(round_num)], parts[policy.private_factor]
        assert parts[policy.trainable_factor(round_num)] <= shared | private
        assert not shared & private


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="expected one of all, .*, got 'freeze'; did you mean 'freeze_a'"):
        share_policy("freeze")


@pytest.mark.parametrize("name", TABLE)
def test_the_config_knows_the_name(name):
    off = {"client_clusters": ClientClustersConfig(num_clusters=1), "dept_clusters": DeptClustersConfig(enabled=False)}
    combiner = "fedavg" if name == "central" else "flora"
    assert FederationConfig(share=name, combiner=combiner, **off).share == name


def test_only_central_is_central():
    assert [name for name, policy in SHARE_POLICIES.items() if policy.is_central] == ["central"]
