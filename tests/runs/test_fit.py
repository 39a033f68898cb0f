import math
import shutil

import pytest
import torch
from peft import PeftModel
from run_files import CLIENTS, DEPARTMENTS, adapters, metrics, read, scalars
from safetensors.torch import load_file

from fl_lightning import InputError, load_base_model
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.runs.build import load_run_config


def test_run_folder_is_version_0_of_the_output(finished):
    assert finished.name == "version_0"


def test_every_file_of_the_contract_is_there(finished):
    top = {p.name for p in finished.iterdir()}
    assert {
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
        "adapters",
        "client_exports",
        "cluster_metadata",
        "client_runs",
        "client_lora_federated.json",
        "dept_lora_federated.json",
        "federated_eval.json",
        "client_eval_all_rounds.json",
        "checkpoints",
    } <= top
    assert [name for name in top if name.startswith("events.out.tfevents.")]
    for department in DEPARTMENTS:
        adapter = {"adapter_config.json", "adapter_model.safetensors"}
        assert {p.name for p in (finished / "adapters" / department).iterdir()} == adapter
        for client in CLIENTS:
            for round_num in (1, 2):
                export = finished / "client_exports" / department / f"round_{round_num}_{client}"
                assert {p.name for p in export.iterdir()} == adapter
                assert (finished / "client_runs" / department / client / f"round_{round_num}.csv").is_file()
    kinds = ("department_clusters", "similarity", "client_clusters", "aggregation")
    wanted = {f"round_{r}_{kind}.json" for r in (1, 2) for kind in kinds}
    assert {p.name for p in (finished / "cluster_metadata").iterdir()} == wanted


def test_no_half_written_file_is_left(finished):
    assert [p.name for p in finished.rglob("*") if p.suffix == ".tmp" or p.name.startswith(".")] == [".lock"]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["history.jsonl", "round_1", "round_2"]


def test_metrics_csv_has_one_row_a_round_and_the_base_as_step_0(finished):
    rows = metrics(finished)
    assert sorted(rows) == [0, 1, 2]
    losses = [float(rows[step]["eval/loss"]) for step in (0, 1, 2)]
    assert losses[2] < losses[1] < losses[0]


def test_metrics_csv_has_the_keys_of_the_contract(finished):
    row = metrics(finished)[2]
    wanted = {"eval/loss", "eval/perplexity", "round/n_clusters", "hr/eval/loss", "engineering/client_0/eval/loss"}
    assert wanted <= set(row)
    assert float(row["eval/perplexity"]) == pytest.approx(math.exp(float(row["eval/loss"])), rel=1e-4)


def test_tensorboard_holds_the_same_rows(finished):
    events = scalars(finished)
    for step, row in metrics(finished).items():
        for name in set(row) - {"step", "epoch"}:
            assert events[name][step] == pytest.approx(float(row[name]), rel=1e-4, abs=1e-6), name


def test_department_adapters_open_with_peft_and_lower_the_loss_of_the_base(finished):
    base, tokenizer = load_base_model(load_run_config(finished).model, dtype=torch.float32)
    ids = torch.tensor([tokenizer("The invoice is due")["input_ids"]])
    plain = base(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits
    model = PeftModel.from_pretrained(base, str(finished / "adapters" / "finance"))
    assert model.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert not torch.equal(model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits, plain)


def test_adapters_hold_finite_fp32_and_b_has_moved(finished):
    for department in DEPARTMENTS:
        state = load_file(finished / "adapters" / department / "adapter_model.safetensors")
        assert {t.dtype for t in state.values()} == {torch.float32}
        assert all(torch.isfinite(t).all() for t in state.values())
        assert all(bool(t.any()) for n, t in state.items() if "lora_B" in n)


def test_federated_eval_has_base_and_final_of_every_department_and_their_mean(finished):
    got = read(finished, "federated_eval.json")
    keys = ["loss", "perplexity", "token_accuracy"]
    assert set(got) == {"departments", "mean"}
    assert list(got["departments"]) == DEPARTMENTS
    for values in [*got["departments"].values(), got["mean"]]:
        assert set(values) == {"base", "final"}
        for figures in values.values():
            assert list(figures) == keys
            assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
            assert 0 <= figures["token_accuracy"] <= 1
    for which in ("base", "final"):
        mean = sum(d[which]["loss"] for d in got["departments"].values()) / 4
        assert got["mean"][which]["loss"] == pytest.approx(mean)
    assert got["mean"]["final"]["loss"] < got["mean"]["base"]["loss"]


def test_federated_eval_agrees_with_the_last_row(finished):
    got, rows = read(finished, "federated_eval.json"), metrics(finished)
    assert float(rows[2]["eval/loss"]) == pytest.approx(got["mean"]["final"]["loss"], rel=1e-5)
    assert float(rows[0]["hr/eval/loss"]) == pytest.approx(got["departments"]["hr"]["base"]["loss"], rel=1e-5)


def test_client_eval_has_every_client_of_every_round(finished):
    got = read(finished, "client_eval_all_rounds.json")
    assert set(got) == {"rounds"}
    assert list(got["rounds"]) == ["1", "2"]
    for departments in got["rounds"].values():
        assert sorted(departments) == DEPARTMENTS
        for clients in departments.values():
            assert sorted(clients) == CLIENTS
            for values in clients.values():
                assert list(values) == ["loss", "perplexity", "token_accuracy", "num_examples"]
                assert values["num_examples"] == 4


def test_indexes_name_every_adapter_by_a_relative_path_that_exists(finished):
    departments, clients = read(finished, "dept_lora_federated.json"), read(finished, "client_lora_federated.json")
    assert departments == {d: f"adapters/{d}" for d in DEPARTMENTS}
    exports = {
        r: {d: {c: f"client_exports/{d}/round_{r}_{c}" for c in CLIENTS} for d in DEPARTMENTS} for r in ("1", "2")
    }
    assert clients == {"rounds": exports}
    for place in [*departments.values(), *(p for r in exports.values() for d in r.values() for p in d.values())]:
        assert (finished / place / "adapter_model.safetensors").is_file()


def test_no_json_holds_an_absolute_path(finished):
    files = [p for p in finished.rglob("*.json") if "adapter_config" not in p.name]
    assert len(files) > 10
    for path in files:
        assert str(finished.parent) not in path.read_text(), path


def test_cluster_metadata_has_the_fields_of_the_contract(finished):
    clusters = read(finished, "cluster_metadata/round_2_department_clusters.json")
    assert set(clusters) == {"round", "n_clusters", "clusters", "assignments", "inertias", "method", "select"}
    assert sorted(clusters["assignments"]) == DEPARTMENTS
    assert clusters["assignments"]["customer_support"] == 0
    assert len(clusters["clusters"]) == clusters["n_clusters"] == len(set(clusters["assignments"].values()))
    assert list(clusters["clusters"]) == sorted(clusters["clusters"], key=int)  # numbers go on from earlier rounds
    assert sorted(d for names in clusters["clusters"].values() for d in names) == DEPARTMENTS
    assert list(clusters["inertias"]) == ["1", "2", "3", "4"]
    similarity = read(finished, "cluster_metadata/round_2_similarity.json")
    assert set(similarity) == {"round", "departments", "cosine", "representation"}
    cosine = torch.tensor(similarity["cosine"])
    assert cosine.shape == (4, 4)
    torch.testing.assert_close(cosine, cosine.T)
    torch.testing.assert_close(cosine.diagonal(), torch.ones(4))


def test_bytes_sent_are_those_of_the_exported_tensors(finished):
    state = load_file(finished / "adapters" / "hr" / "adapter_model.safetensors")
    size = sum(t.numel() * 4 for t in state.values())
    got = read(finished, "cluster_metadata/round_1_aggregation.json")["bytes"]
    assert got["client/up"] == got["client/down"] == 8 * size
    assert got["hr/client_0"] == size


def test_client_log_has_a_line_for_every_step(finished):
    lines = (finished / "client_runs" / "hr" / "client_0" / "round_1.csv").read_text().splitlines()
    assert lines[0] == "step,train/loss"
    assert len(lines) == 1 + 8 // 4


@pytest.mark.slow
def test_same_command_twice_gives_byte_identical_adapters_and_a_new_version(fit, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "version_0")
    again = fit(tmp_path, "--rounds", "2")
    assert again.name == "version_1"
    assert adapters(again) == adapters(finished)
    assert metrics(again) == metrics(finished)


@pytest.mark.slow
def test_share_a_department_adapter_carries_the_clients_mean_b(fit, tmp_path):
    folder = fit(tmp_path, "--rounds", "1", "--federation.share=a", "--max-records", "4")
    clients = [load_file(folder / f"client_exports/hr/round_1_{c}/adapter_model.safetensors") for c in CLIENTS]
    department = load_file(folder / "adapters/hr/adapter_model.safetensors")
    for name in (n for n in department if "lora_B" in n):
        torch.testing.assert_close(department[name], (clients[0][name] + clients[1][name]) / 2)


@pytest.mark.slow
def test_retention_drops_old_exports_and_checkpoints(fit, tmp_path):
    keep = ["--retention.client_exports=1", "--retention.checkpoints=1", "--clients-per-dept", "1"]
    folder = fit(tmp_path, "--rounds", "3", *keep, "--max-records", "4")
    assert list(checkpoints(folder)) == [3]
    for department in DEPARTMENTS:
        assert [p.name for p in (folder / "client_exports" / department).iterdir()] == ["round_3_client_0"]
    assert list(read(folder, "client_lora_federated.json")["rounds"]) == ["3"]
    assert list(read(folder, "client_eval_all_rounds.json")["rounds"]) == ["1", "2", "3"]


def test_logger_that_does_not_exist_is_refused_before_a_run_folder_is_made(fit, tmp_path):
    with pytest.raises(InputError, match="no.such.Logger"):
        fit(tmp_path, "--rounds", "1", '--logging.loggers=[{"class_path": "no.such.Logger"}]')
    assert list(tmp_path.glob("version_*")) == []


def test_layers_that_the_base_lacks_are_refused_before_there_is_a_run_folder(fit, tmp_path):
    with pytest.raises(InputError, match=r"federation.share_layers: expected some of .*\[0, 1, 2\].*got \[7\]"):
        fit(tmp_path / "runs", "--federation.share_layers", "[7]", "--no-dept-clustering", "--num-clusters", "1")
    assert not (tmp_path / "runs").exists()
