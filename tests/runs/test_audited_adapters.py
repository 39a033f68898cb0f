"""Which adapters an audit attacks: departments before mixing are computed from those after it."""

from dataclasses import replace

import pytest
import torch

from fl_lightning.config import DeptClustersConfig, FederationConfig, RunConfig
from fl_lightning.federation.state import FederationState
from fl_lightning.mixing import mix_with_cluster_average
from fl_lightning.runs.audited_adapters import unmixed_departments

EXAMPLES = {"a/x": 10, "a/y": 20, "b/x": 5, "c/x": 7}
ASSIGNMENTS = {"a": 0, "b": 0, "c": 1}


def state_of(departments, **more):
    initial = {name: torch.zeros_like(tensor) for name, tensor in departments["a"].items()}
    return FederationState(1, initial, departments, examples=EXAMPLES, cluster_assignments=ASSIGNMENTS, **more)


@pytest.fixture
def before():
    generator = torch.Generator().manual_seed(0)
    names = {"lora_A": (2, 5), "lora_B": (4, 2)}
    return {d: {n: torch.randn(shape, generator=generator) for n, shape in names.items()} for d in "abc"}


def mixed(before, ratio, mix):
    mean = {n: (30 * before["a"][n] + 5 * before["b"][n]) / 35 for n in before["a"]}
    return {d: mix_with_cluster_average(s, mean if d in "ab" else s, ratio, mix=mix) for d, s in before.items()}


def config_of(**clusters):
    return RunConfig(federation=FederationConfig(dept_clusters=DeptClustersConfig(**clusters)))


@pytest.mark.parametrize("mix", ["a", "all"])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_mixing_is_undone(before, mix, ratio):
    after = mixed(before, ratio, mix)
    assert not torch.allclose(after["a"]["lora_A"], before["a"]["lora_A"], atol=0.01)
    got = unmixed_departments(config_of(mixing_ratio=ratio, mix=mix), state_of(after))
    for department, state in before.items():
        for name, tensor in state.items():
            torch.testing.assert_close(got[department][name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clusters", [{"enabled": False}, {"mixing_ratio": 0.0}, {"mixing_ratio": 1.0}])
def test_nothing_is_undone_where_nothing_was_mixed_or_all_was(before, clusters):
    assert unmixed_departments(config_of(**clusters), state_of(before)) == {}


def test_groups_and_departments_without_a_cluster_cannot_be_undone(before):
    state = state_of(before)
    assert unmixed_departments(config_of(), replace(state, groups={"trade": before["a"]})) == {}
    assert unmixed_departments(config_of(), replace(state, cluster_assignments={"a": 0})) == {}
