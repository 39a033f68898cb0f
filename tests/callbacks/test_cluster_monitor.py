import json

import pytest

from fl_lightning import ClusterMonitor
from fl_lightning.clustering import dissimilarity


@pytest.fixture
def script(state):
    # directions of A - A0: ops and it the same, hr and law each their own
    return [
        {
            "hr/c0": (state((1, 5)), 1),
            "it/c0": (state((5, 0)), 1),
            "it/c1": (state((5, 0), (0, 0, 2)), 3),
            "law/c0": (state((-3, -1)), 1),
            "ops/c0": (state((9, 0)), 3),
            "ops/c1": (state((float("nan"), 0)), 3),
        }
    ] * 2


@pytest.fixture
def config(plain_config):
    return plain_config(rounds=2, num_clusters=2, global_mix=0.0, enabled=True, mixing_ratio=0.0)


def read(folder, round_num, what):
    return json.loads((folder / "cluster_metadata" / f"round_{round_num}_{what}.json").read_text())


def test_four_files_are_written_each_round(play, script, config, tmp_path):
    play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    kinds = ("department_clusters", "similarity", "client_clusters", "aggregation")
    wanted = {f"round_{r}_{kind}.json" for r in (1, 2) for kind in kinds}
    assert {p.name for p in (tmp_path / "cluster_metadata").iterdir()} == wanted


def test_department_clusters_have_the_fields_of_the_contract(play, script, config, tmp_path):
    trainer = play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    got = read(tmp_path, 2, "department_clusters")
    inertias = got.pop("inertias")
    assert got == {
        "round": 2,
        "n_clusters": 3,
        "clusters": {"0": ["hr"], "1": ["it", "ops"], "2": ["law"]},
        "assignments": {"hr": 0, "it": 1, "law": 2, "ops": 1},
        "method": "kmeans",
        "select": "elbow",
    }
    assert list(inertias) == [str(k) for k in trainer.report.clustering.inertias]
    assert list(inertias)[0] == "1"


def test_similarity_is_the_cosine_of_the_updates(play, script, config, tmp_path):
    play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    got = read(tmp_path, 1, "similarity")
    assert set(got) == {"round", "departments", "cosine", "representation"}
    assert got["departments"] == ["hr", "it", "law", "ops"]
    assert got["representation"] == "delta"
    # hr (0, 5), it (4, 0), law (-4, -1), ops (8, 0)
    assert got["cosine"][0] == pytest.approx([1.0, 0.0, -1 / 17**0.5, 0.0], abs=1e-6)
    assert got["cosine"][1] == pytest.approx([0.0, 1.0, -4 / 17**0.5, 1.0], abs=1e-6)


def test_similarities_that_were_left_out_are_null(play, script, config, tmp_path, monkeypatch):
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 3)
    play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    assert read(tmp_path, 1, "similarity")["cosine"] is None


def test_client_clusters_list_members_and_assignments(play, script, config, tmp_path):
    play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    got = read(tmp_path, 1, "client_clusters")
    assert got["departments"]["it"] == {"clusters": {"0": ["c0"], "1": ["c1"]}, "assignments": {"c0": 0, "c1": 1}}
    assert got["departments"]["ops"]["assignments"] == {"c0": 0}


def test_aggregation_holds_weights_norms_bytes_and_who_was_left_out(play, script, config, tmp_path):
    play(script, config, callbacks=[ClusterMonitor()], run_folder=tmp_path)
    got = read(tmp_path, 1, "aggregation")
    assert got["departments"]["it"]["weights"] == {"c0": 0.25, "c1": 0.75}
    assert got["departments"]["it"]["residual_norms"]["c0"] == pytest.approx(4.0)
    assert got["departments"]["hr"]["moved"] == pytest.approx(5.0)
    assert "not finite" in got["departments"]["ops"]["left_out"]["c1"]
    assert got["bytes"]["client/up"] == 5 * 20
    assert got["bytes"]["department/up"] == 4 * 8


def test_figures_go_to_the_loggers(play, script, config):
    row = dict(play(script, config, callbacks=[ClusterMonitor()]).history)[1]
    assert row["round/n_clusters"] == 3
    assert row["round/left_out"] == 1
    assert row["round/bytes/client/up"] == 100
    assert row["ops/cluster"] == 1
    assert row["it/c0/residual_norm"] == pytest.approx(4.0)
    assert row["hr/moved"] == pytest.approx(5.0)


def test_clusters_stand_in_the_log(play, script, config, log_messages):
    play(script, config, callbacks=[ClusterMonitor()])
    assert any("round 1: clusters hr | it, ops | law" in m for m in log_messages)


def test_logging_can_be_turned_off(play, script, config, tmp_path):
    trainer = play(script, config, callbacks=[ClusterMonitor(log_metrics=False)], run_folder=tmp_path)
    assert trainer.history == []
    assert (tmp_path / "cluster_metadata" / "round_1_aggregation.json").is_file()


def test_metadata_can_be_turned_off(play, script, config, tmp_path):
    play(script, config, callbacks=[ClusterMonitor(save_metadata=False)], run_folder=tmp_path)
    assert not (tmp_path / "cluster_metadata").exists()


def test_without_department_clusters_there_are_no_files_about_them(play, script, plain_config, tmp_path):
    trainer = play(script, plain_config(rounds=2), callbacks=[ClusterMonitor()], run_folder=tmp_path)
    wanted = {f"round_{r}_{kind}.json" for r in (1, 2) for kind in ("client_clusters", "aggregation")}
    assert {p.name for p in (tmp_path / "cluster_metadata").iterdir()} == wanted
    assert "round/n_clusters" not in dict(trainer.history)[1]
