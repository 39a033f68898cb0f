import json

import pytest


def test_table_and_json_and_how_to_go_on(command, tmp_path):
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/config.yaml").write_text("federation: {rounds: 7}\n")
    code, text, _ = command("runs", "--output", tmp_path)
    assert code == 0
    assert "interrupted at round 0 of 7" in text
    assert f"fit --resume {tmp_path}/version_0 continues" in text
    code, text, _ = command("runs", "--output", tmp_path, "--json")
    assert (code, json.loads(text)[0]["rounds"]) == (0, 7)


def test_no_run_is_said(command, tmp_path):
    code, text, _ = command("runs", "--output", tmp_path)
    assert code == 0
    assert "No run in" in text
    assert command("runs", "--output", tmp_path / "no")[0] == 2


@pytest.mark.slow
def test_finished_run_of_fit_is_listed(command, tmp_path, cut_departments):
    data = cut_departments(tmp_path / "data", 1, 2, 1)
    argv = ["fit", "--rounds", 1, "--clients-per-dept", 1, "--device-map", "cpu", "--data", data, "--output", tmp_path]
    assert command(*argv)[0] == 0
    _, text, _ = command("runs", "--output", tmp_path, "--json")
    (run,) = json.loads(text)
    wanted = json.loads((tmp_path / "version_0/federated_eval.json").read_text())["mean"]
    assert (run["status"], run["round"], run["departments"]) == ("finished", 1, 4)
    assert (run["base"], run["final"]) == (wanted["base"]["loss"], wanted["final"]["loss"])
    assert run["clusters"] >= 1
