import json
import os
from datetime import datetime, timezone

import pytest

from fl_lightning.errors import InputError
from fl_lightning.runs.listing import list_runs
from fl_lightning.storage.run_folder import locked


@pytest.fixture
def make_run(tmp_path):
    def make(number, rounds=3, done=3, evaluated=True, metrics=True):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(f"federation:\n  rounds: {rounds}\n")
        if metrics:
            rows = [f"{5 - step},{'' if step == 0 else 2},{step}" for step in range(done + 1)]
            (folder / "metrics.csv").write_text("eval/loss,round/n_clusters,step\n" + "\n".join(rows) + "\n")
        if evaluated:
            mean = {"base": {"loss": 5.5}, "final": {"loss": 1.25}}
            (folder / "federated_eval.json").write_text(json.dumps({"departments": {"hr": {}}, "mean": mean}))
        return folder

    return make


def test_finished_run_has_its_final_figures(make_run, tmp_path):
    folder = make_run(0)
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1e9, 1e9))
    (run,) = list_runs(tmp_path)
    assert (run.status, run.round, run.rounds, run.departments, run.clusters) == ("finished", 3, 3, 1, 2)
    assert (run.base, run.final) == (5.5, 1.25)
    assert run.changed == datetime(2001, 9, 9, 1, 46, 40, tzinfo=timezone.utc)
    assert run.as_json()["changed"] == "2001-09-09T01:46:40+00:00"


def test_interrupted_run_has_the_figures_so_far(make_run, tmp_path):
    make_run(0, rounds=9, done=2, evaluated=False)
    (run,) = list_runs(tmp_path)
    assert (run.status, run.round, run.rounds) == ("interrupted", 2, 9)
    assert (run.base, run.final) == (5.0, 3.0)


def test_run_that_a_process_holds_is_running(make_run, tmp_path):
    with locked(make_run(0)):
        assert list_runs(tmp_path)[0].status == "running"
    assert list_runs(tmp_path)[0].status == "finished"


def test_rounds_are_known_without_a_csv_logger(make_run, tmp_path):
    folder = make_run(0, metrics=False)
    (folder / "client_eval_all_rounds.json").write_text(json.dumps({"rounds": {"2": {}, "3": {}}}))
    (run,) = list_runs(tmp_path)
    assert (run.status, run.round, run.clusters) == ("finished", 3, None)


def test_run_that_has_just_begun_has_no_figures(make_run, tmp_path):
    make_run(0, evaluated=False, metrics=False)
    (run,) = list_runs(tmp_path)
    assert (run.status, run.round, run.base, run.final) == ("interrupted", 0, None, None)


def test_broken_files_are_no_end_of_the_list(make_run, tmp_path):
    make_run(10)
    folder = make_run(9)
    (folder / "config.yaml").write_text("- [")
    (folder / "federated_eval.json").write_text("[]")
    (folder / "metrics.csv").write_text("eval/loss,step\nx,y\n")
    (tmp_path / "version_11").mkdir()
    (tmp_path / "compare_0").mkdir()
    assert [(run.name, run.status) for run in list_runs(tmp_path)] == [
        ("version_9", "unreadable"),
        ("version_10", "finished"),
    ]


def test_missing_folder_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="expected a folder with version_N folders"):
        list_runs(tmp_path / "no")
