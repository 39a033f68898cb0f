"""Guards, weightings and server steps in rounds: reported, remembered, resumed."""

import dataclasses
import math

import pytest
import torch

from fl_lightning import ClusterMonitor, RoundCheckpoint, RunError
from fl_lightning.clustering.tree import ROOT
from fl_lightning.config import GuardConfig, HierarchyConfig, ServerConfig
from fl_lightning.federation.checkpoint import load_checkpoint

A, B = "w.lora_A.weight", "w.lora_B.weight"


@pytest.fixture
def configured(plain_config):
    def make(rounds=1, **changes):
        return dataclasses.replace(plain_config(rounds=rounds), **changes)

    return make


def round_of(state, bad=(-90.0, -90.0)):
    honest = {f"hr/c{i}": (state((2 + 0.1 * i, 1), (1, 0, 0)), 1) for i in range(6)}
    return {**honest, "hr/c6": (state(bad, (-50, 0, 0)), 1)}


def test_a_client_that_the_guard_leaves_out_is_reported_logged_and_counted(play, configured, state, log_messages):
    trainer = play([round_of(state)], configured(guard=GuardConfig(name="outlier")), callbacks=[ClusterMonitor()])
    report = trainer.report.departments["hr"]
    assert list(report.rejected) == ["c6"]
    assert any("rejecting the update of hr/c6: " in message for message in log_messages)
    assert trainer.rows()[-1][1]["round/left_out"] == 1
    assert report.weights == {f"c{i}": pytest.approx(1 / 6) for i in range(6)}
    assert set(report.drift) == {f"c{i}" for i in range(7)}  # what it sent is still measured
    assert trainer.federation.departments["hr"][A][0, 0].item() == pytest.approx(2.25)


def test_a_client_that_is_left_out_stays_out_of_the_client_clusters(play, configured, state):
    from fl_lightning.config import ClientClustersConfig

    config = configured(guard=GuardConfig(name="outlier"), client_clusters=ClientClustersConfig(2, 0.0))
    trainer = play([round_of(state)], config)
    assert set(trainer.report.departments["hr"].client_clusters) == {f"c{i}" for i in range(6)}
    assert "hr/c6" not in trainer.federation.client_starts


def test_a_department_with_too_few_clients_for_krum_keeps_its_state(play, configured, state, log_messages):
    few = {"it/c0": (state((9, 9)), 1)}
    trainer = play([{**round_of(state), **few}], configured(guard=GuardConfig(name="krum", f=1)))
    assert trainer.federation.departments["it"][A].tolist() == [[1.0, 0.0]]
    assert trainer.federation.departments["hr"][A].tolist() != [[1.0, 0.0]]
    assert trainer.report.departments["it"].rejected == {"c0": "it: expected at least 5 valid updates, got 1"}
    assert any("(federation.guard: krum with f = 1); its state is kept" in message for message in log_messages)


def test_too_few_clients_for_krum_everywhere_end_the_run(play, configured, state):
    with pytest.raises(RunError, match="round 1: expected a department with at least .*guard krum, got none"):
        play([{"hr/c0": (state(), 1)}], configured(guard=GuardConfig(name="krum")))


def test_a_server_step_goes_on_from_its_memory_after_a_resume(play, configured, state, tmp_path):
    config = configured(rounds=4, server=ServerConfig(step="fedavgm", beta1=0.5))
    script = [{"hr/c0": (state((4, r), (r, 1, 0)), 2), "hr/c1": (state((0, r), (0, r, 0)), 1)} for r in range(4)]
    whole = play(script, config, callbacks=[RoundCheckpoint(0)], run_folder=tmp_path).federation
    for round_num in (1, 2, 3):
        resumed, _ = load_checkpoint(tmp_path / "checkpoints" / f"round_{round_num}")
        assert set(resumed.optimizer_states["hr"]) == {"m/" + A, "m/" + B}
        again = play(script, config, resume=resumed).federation
        for name, tensor in whole.departments["hr"].items():
            assert torch.equal(again.departments["hr"][name], tensor)
        for name, tensor in whole.optimizer_states["hr"].items():
            assert torch.equal(again.optimizer_states["hr"][name], tensor)


def test_the_aggregation_error_is_that_of_the_means_product(play, configured, state):
    # one layer, A of shape (1, 2), B of (3, 1), equal weights: A = (2, 0) and (0, 2), B = e1 and e2
    # mean product: half of 2 at (1, 1) and at (2, 2): norm √2; product of means: (½, ½, 0)ᵀ (1, 1): all four ½
    script = [{"hr/c0": (state((2, 0), (1, 0, 0)), 1), "hr/c1": (state((0, 2), (0, 1, 0)), 1)}]
    trainer = play(script, configured(), callbacks=[ClusterMonitor()])
    report = trainer.report.departments["hr"]
    assert report.aggregation_error == pytest.approx(math.sqrt(4 * 0.25) / math.sqrt(2))
    assert report.layer_errors == {"w": pytest.approx(report.aggregation_error)}
    assert trainer.rows()[-1][1]["hr/aggregation_error"] == report.aggregation_error


@pytest.mark.parametrize("changes", [{"measure_error": False}, {"share": "a"}])
def test_no_aggregation_error_where_it_is_off_or_one_factor_alone_is_sent(play, configured, state, changes):
    trainer = play([{"hr/c0": (state((2, 0), (1, 0, 0)), 1)}], configured(**changes), callbacks=[ClusterMonitor()])
    assert trainer.report.departments["hr"].aggregation_error is None
    assert "hr/aggregation_error" not in trainer.rows()[-1][1]


def test_contribution_weighs_by_what_the_mean_loses_without_a_client(play, configured, state):
    # the fake client's loss is the sum of A. With all: (6 + 3 + 0) / 3 = 3; without c0 1.5, c1 3, c2 4.5:
    # only without c2 it is worse, so c2 alone counts
    script = [{f"hr/c{i}": (state((value, 0), (i, 0, 0)), 1) for i, value in enumerate([6, 3, 0])}]
    trainer = play(script, configured(weighting="contribution"))
    report = trainer.report.departments["hr"]
    assert report.weights == {"c2": 1.0}
    assert set(report.rejected) == {"c0", "c1"}
    assert trainer.federation.departments["hr"][A].tolist() == [[0.0, 0.0]]
    assert trainer.federation.departments["hr"][B].flatten().tolist() == [2.0, 0.0, 0.0]


def test_contribution_of_a_single_client_is_everything(play, configured, state):
    trainer = play([{"hr/c0": (state((6, 0)), 1)}], configured(weighting="contribution"))
    assert trainer.report.departments["hr"].weights == {"c0": 1.0}


def grouped(plain_config, **dept):
    return plain_config(rounds=1, **{"enabled": True, "min_clusters": 1, **dept})


def six(state, apart):
    """Two departments of three clients: one went right, the other up, or both right."""
    moves = {"hr": (5.0, 0.0), "it": (0.0, 5.0) if apart else (5.0, 0.0)}
    return {
        f"{d}/c{i}": (state((1 + x + 0.1 * i, y - 0.1 * i), (1, 0, 0)), 1 + i)
        for d, (x, y) in moves.items()
        for i in range(3)
    }


def test_clusters_by_losses_evaluate_every_department_on_every_other(play, plain_config, state):
    config = grouped(plain_config, representation="cross_loss", select="fixed", max_clusters=1)
    trainer = play([six(state, apart=True)], config)
    evaluated = [client_id for _, client_id in trainer.clients.evaluated]
    assert {client_id: evaluated.count(client_id) for client_id in evaluated} == {
        f"{d}/c{i}": 2 for d in ("hr", "it") for i in range(3)
    }
    assert trainer.report.clustering.cosine is None


def test_dynamic_judges_by_the_clients_own_fits(play, plain_config, state):
    trainer = play([six(state, apart=True)], grouped(plain_config, select="dynamic", mixing_ratio=0.0))
    assert trainer.report.clustering.n_clusters == 1  # ten ways to deal six clients are too few for any test
    assert trainer.report.clustering.p_values == {1: 1.0}


def test_what_grouping_remembers_is_in_the_checkpoint(play, plain_config, state, tmp_path):
    config = grouped(plain_config, smoothing=0.5, patience=2, select="silhouette", max_clusters=2)
    trainer = play([six(state, apart=True)], config, callbacks=[RoundCheckpoint(0)], run_folder=tmp_path)
    loaded = load_checkpoint(tmp_path / "checkpoints" / "round_1")[0]
    assert loaded.clustering_memory == trainer.federation.clustering_memory
    assert set(loaded.clustering_memory[ROOT]) == {"relation", "hysteresis"}
    two = dataclasses.replace(config, rounds=2)
    script = [six(state, apart=True)] * 2
    resumed, straight = play(script, two, resume=loaded).federation, play(script, two).federation
    assert resumed.clustering_memory == straight.clustering_memory
    assert all(torch.equal(resumed.departments["hr"][n], straight.departments["hr"][n]) for n in (A, B))


TREE = HierarchyConfig({"office": ["hr", "law"]})


def branches(state):
    return {
        **six(state, apart=True),
        "law/c0": (state((5, 1), (1, 0, 0)), 2),
    }


def with_groups(plain_config, **dept):
    return dataclasses.replace(grouped(plain_config, **dept), hierarchy=TREE)


def test_a_group_of_departments_has_a_state_a_cluster_and_figures(play, plain_config, state):
    fixed = {"select": "fixed", "min_clusters": 1, "max_clusters": 1, "mixing_ratio": 1.0, "mix": "all"}
    trainer = play([branches(state)], with_groups(plain_config, **fixed), callbacks=[ClusterMonitor()])
    departments, office = trainer.federation.departments, trainer.federation.groups["office"]
    for name in (A, B):  # everybody is in one cluster and mixed whole: all are alike
        assert all(torch.allclose(departments[d][name], office[name]) for d in ("hr", "law", "it"))
    assert trainer.federation.cluster_assignments == {"hr": 0, "law": 0, "it": 0, "office": 0}
    assert set(trainer.report.clusterings) == {"office", ROOT}
    row = trainer.rows()[-1][1]
    assert (row["office/n_clusters"], row["office/cluster"], row["round/n_clusters"]) == (1, 0, 1)
    assert row["round/bytes/group/up"] * 3 == row["round/bytes/department/up"]


@pytest.mark.parametrize("representation", ["cross_loss", "delta"])
def test_groups_are_compared_as_departments_are(play, plain_config, state, representation):
    config = with_groups(plain_config, representation=representation, select="fixed", max_clusters=2)
    trainer = play([branches(state)], config)
    assert trainer.report.clusterings[ROOT].departments == ["it", "office"]
    if (
        representation == "cross_loss"
    ):  # hr's 3 clients and law's 1 in office: 2 adapters each; then with it's 3 as well
        assert len(trainer.clients.evaluated) == 2 * 4 + 2 * 7


def test_dynamic_counts_the_clients_below_a_group_as_its_own(play, plain_config, state):
    trainer = play([branches(state)], with_groups(plain_config, select="dynamic"))
    first = trainer.federation.clustering_memory[ROOT]["clients"]["weights"]
    assert set(first) == {"it/c0", "it/c1", "it/c2", "office/hr.c0", "office/hr.c1", "office/hr.c2", "office/law.c0"}


def test_groups_are_in_the_checkpoint_and_a_resumed_run_goes_on(play, plain_config, state, tmp_path):
    config = with_groups(plain_config, select="fixed", max_clusters=2, smoothing=0.5)
    trainer = play([branches(state)], config, callbacks=[RoundCheckpoint(0)], run_folder=tmp_path)
    loaded = load_checkpoint(tmp_path / "checkpoints" / "round_1")[0]
    assert torch.equal(loaded.groups["office"][A], trainer.federation.groups["office"][A])
    assert loaded.cluster_assignments == trainer.federation.cluster_assignments
    two, script = dataclasses.replace(config, rounds=2), [branches(state)] * 2
    resumed, straight = play(script, two, resume=loaded).federation, play(script, two).federation
    for name in (A, B):
        assert torch.equal(resumed.groups["office"][name], straight.groups["office"][name])
        assert torch.equal(resumed.departments["law"][name], straight.departments["law"][name])
