import json
import os

import pytest

from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.artifacts import ROOT, ExcludedUpdate

TWO = {"finance": ["a", "b"], "hr": ["c"]}


def test_whole_run_is_read(make_run):
    why = "w: not finite"
    run = read_artifacts(make_run(TWO, rounds=2, planned=5, left_out=[(2, "hr", "c", why)]))
    assert run.missing == []
    assert (run.planned_rounds, run.rounds, run.departments, run.groups) == (5, [1, 2], ["finance", "hr"], set())
    assert run.losses["finance"] == pytest.approx({0: 6.0, 1: 5.99, 2: 5.98})
    assert run.mean_loss == pytest.approx({0: 5.95, 1: 5.94, 2: 5.93})
    assert run.client_losses["finance"]["b"] == pytest.approx({1: 4.89, 2: 4.88})
    assert run.metrics["hr"]["base"]["loss"] == pytest.approx(5.9)
    assert run.clusters[2][ROOT].assignments == {"finance": 0, "hr": 1}
    assert run.clusters[2][ROOT].inertias == {1: 4.0, 2: 1.0, 3: 0.5}
    assert run.clusters[2][ROOT].cosine == [[1.0, -0.25], [-0.25, 1.0]]
    assert run.client_clusters[1] == {"finance": {"a": 0, "b": 1}, "hr": {"c": 0}}
    assert run.rejected == [ExcludedUpdate(2, "hr", "c", why)]
    assert run.bytes_sent[1] == {"client/up": 2048, "client/down": 4096, "department/up": 1024, "department/down": 1024}
    assert run.seconds[2] == {"fit": 2.0, "aggregate": 0.5, "evaluate": 1.0, "write": 0.2}


def test_empty_folder_says_what_is_missing(tmp_path):
    run = read_artifacts(tmp_path)
    said = " ".join(run.missing)
    names = ["config.yaml", "federated_eval.json", "client_eval_all_rounds.json", "metrics.csv", "cluster_metadata/"]
    assert [name for name in names if name not in said] == []
    assert (run.rounds, run.departments) == ([], [])


def test_without_metrics_first_and_last_loss_are_known(make_run):
    folder = make_run(TWO, rounds=3)
    (folder / "metrics.csv").unlink()
    run = read_artifacts(folder)
    assert run.losses["hr"] == pytest.approx({0: 5.9, 3: 5.87})
    assert [line for line in run.missing if "metrics.csv" in line]


def test_metrics_alone_give_clients_losses_and_bytes(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,eval/loss,hr/c_1/eval/loss,hr/eval/loss,round/bytes/client/up,seconds/fit,x\n"
        "0,2.0,,2.0,,,\n1,1.5,1.25,1.5,64,3.5,oops\nlast,1,1,1,1,1,1\n"
    )
    run = read_artifacts(tmp_path)
    assert run.client_losses == {"hr": {"c_1": {1: 1.25}}}
    assert run.losses == {"hr": {0: 2.0, 1: 1.5}}
    assert (run.mean_loss, run.bytes_sent, run.seconds) == ({0: 2.0, 1: 1.5}, {1: {"client/up": 64}}, {1: {"fit": 3.5}})


FILES = [
    "config.yaml",
    "metrics.csv",
    "federated_eval.json",
    "client_eval_all_rounds.json",
    "cluster_metadata/round_1_department_clusters.json",
    "cluster_metadata/round_1_similarity.json",
    "cluster_metadata/round_1_client_clusters.json",
    "cluster_metadata/round_1_aggregation.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1, {}]", '{"departments": 3, "rounds": [], "assignments": {"a": "b"}}', "\x00\xff"]
)
def test_broken_file_takes_nothing_else_along(make_run, name, text):
    folder = make_run(TWO, rounds=2)
    (folder / name).write_text(text, encoding="latin-1")
    run = read_artifacts(folder)
    assert run.departments == ["finance", "hr"]
    assert run.rounds == [1, 2]
    if name.endswith(".json") and text in ("", "{") and "similarity" not in name:
        assert [line for line in run.missing if line.startswith(f"{name} cannot be used")]


def test_groups_are_told_from_departments(make_run):
    folder = make_run(TWO, rounds=1)
    groups = {"trade": {"base": {"loss": 3.0}, "final": {"loss": 2.0}}}
    values = json.loads((folder / "federated_eval.json").read_text())
    (folder / "federated_eval.json").write_text(json.dumps({**values, "groups": groups}))
    found = {"assignments": {"finance": 0, "hr": 0}, "similarity": {"departments": ["finance", "hr"], "cosine": None}}
    path = folder / "cluster_metadata" / "round_1_hierarchy.json"
    path.write_text(json.dumps({"round": 1, "groups": {"trade": found}}))
    run = read_artifacts(folder)
    assert (run.departments, run.groups) == (["finance", "hr"], {"trade"})
    assert run.clusters[1]["trade"].assignments == {"finance": 0, "hr": 0}
    assert run.clusters[1]["trade"].cosine is None


def test_file_that_never_ends_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "federated_eval.json")
    os.mkfifo(tmp_path / "metrics.csv")
    assert read_artifacts(tmp_path).departments == []
