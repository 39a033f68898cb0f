from __future__ import annotations

import json
import math

import pytest
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.evaluation.departments import evaluate_departments, evaluate_run, summary
from fl_lightning.evaluation.metrics import metric_values
from fl_lightning.federation.protocol import Metrics
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter
from fl_lightning.module import LoraClientModule
from fl_lightning.training.local_clients import LocalClients


class FixedClients:
    """Gives figures by client, whatever the adapter; remembers the jobs."""

    def __init__(self, *metrics):
        self.metrics, self.jobs = metrics, []

    def evaluate(self, jobs, split="eval"):
        asked = list(jobs)
        self.jobs += asked
        return list(self.metrics[: len(asked)])


@pytest.fixture
def federation(make_examples):
    names = [("hr", "client_0"), ("hr", "client_1"), ("sales", "client_0")]
    return {
        f"{d}/{c}": ClientData(d, c, make_examples(2, k), make_examples(k + 2, k)) for k, (d, c) in enumerate(names)
    }


def test_departments_pool_the_tokens_of_their_clients(federation):
    clients = FixedClients(Metrics(10.0, 1.0, 10, 2), Metrics(90.0, 3.0, 30, 3), Metrics(8.0, 0.0, 4, 4))
    departments, mean_over_clients = evaluate_departments(clients, federation, {"hr": {}, "sales": {}})
    assert departments["hr"]["loss"] == pytest.approx(100 / 40)
    assert departments["hr"]["token_accuracy"] == pytest.approx(4 / 40)
    assert departments["sales"]["loss"] == pytest.approx(2.0)
    assert mean_over_clients == pytest.approx((1.0 + 3.0 + 2.0) / 3)


def test_each_client_is_evaluated_with_its_departments_adapter_on_its_held_out_records(federation):
    clients = FixedClients(*[Metrics(1.0, 1.0, 1, 1)] * 3)
    states = {"hr": {"a": 1}, "sales": {"a": 2}}
    evaluate_departments(clients, federation, states)
    assert [state for state, _ in clients.jobs] == [states["hr"], states["hr"], states["sales"]]
    assert [client_id for _, client_id in clients.jobs] == list(federation)


def test_summary_has_base_and_final_of_each_department_and_the_means():
    base = {"sales": metric_values(2.0, 0.0), "hr": metric_values(4.0, 0.0)}
    final = {"sales": metric_values(1.0, 0.5), "hr": metric_values(2.0, 0.5)}
    got = summary(base, final)
    assert list(got["departments"]) == ["hr", "sales"]
    assert got["departments"]["hr"] == {"base": base["hr"], "final": final["hr"]}
    assert got["mean"]["base"]["loss"] == pytest.approx(3.0)
    assert got["mean"]["final"]["loss"] == pytest.approx(1.5)


@pytest.fixture
def run(tmp_path, micro_qwen, random_state, federation):
    """(run folder, clients, fresh adapter) with adapters of two departments and one round of client exports."""
    model = create_lora_model(micro_qwen, r=4)
    clients = LocalClients(Fabric(accelerator="cpu", devices=1), LoraClientModule(model), federation, TrainingConfig())
    departments, exports = {}, {}
    for k, department in enumerate(("hr", "sales")):
        departments[department] = f"adapters/{department}"
        export_lora_adapter(model, tmp_path / departments[department], random_state(model, k))
    for k, client in enumerate(federation.values()):
        place = f"client_exports/{client.department}/round_1_{client.client}"
        exports.setdefault(client.department, {})[client.client] = place
        export_lora_adapter(model, tmp_path / place, random_state(model, 10 + k))
    (tmp_path / "dept_lora_federated.json").write_text(json.dumps(departments))
    (tmp_path / "client_lora_federated.json").write_text(json.dumps({"rounds": {"1": exports}}))
    return tmp_path, clients, collect_lora_state(model)


def test_evaluating_a_run_writes_both_files(run, federation):
    folder, clients, initial = run
    result = evaluate_run(folder, federation, clients, initial)
    assert json.loads((folder / "federated_eval.json").read_text()) == result
    assert set(result["departments"]) == {"hr", "sales"}
    rounds = json.loads((folder / "client_eval_all_rounds.json").read_text())["rounds"]
    assert {d: sorted(c) for d, c in rounds["1"].items()} == {"hr": ["client_0", "client_1"], "sales": ["client_0"]}
    assert rounds["1"]["hr"]["client_1"]["num_examples"] == 3
    assert set(rounds["1"]["hr"]["client_1"]) == {"loss", "perplexity", "token_accuracy", "num_examples"}


def test_base_and_final_differ_and_are_those_of_fresh_and_exported_adapters(run, federation, random_state):
    folder, clients, initial = run
    result = evaluate_run(folder, federation, clients, initial)["departments"]["sales"]
    base = clients.evaluate([(initial, "sales/client_0")])[0]
    final = clients.evaluate([(random_state(clients._fitting._module.model, 1), "sales/client_0")])[0]
    assert result["base"]["loss"] == pytest.approx(base.loss_sum / base.num_tokens, rel=1e-5)
    assert result["final"]["loss"] == pytest.approx(final.loss_sum / final.num_tokens, rel=1e-5)
    assert abs(result["base"]["loss"] - result["final"]["loss"]) > 1e-3


def test_missing_department_is_an_input_error(run, federation):
    folder, clients, initial = run
    (folder / "dept_lora_federated.json").write_text('{"hr": "adapters/hr"}')
    with pytest.raises(InputError, match="department sales"):
        evaluate_run(folder, federation, clients, initial)


def test_adapter_path_out_of_the_run_folder_is_refused(run, federation):
    folder, clients, initial = run
    (folder / "dept_lora_federated.json").write_text('{"hr": "../hr", "sales": "adapters/sales"}')
    with pytest.raises(InputError, match="out of the run folder"):
        evaluate_run(folder, federation, clients, initial)


def test_adapter_that_does_not_fit_is_an_input_error(run, federation):
    folder, clients, initial = run
    wrong = {n: t[:, :-1].contiguous() for n, t in initial.items()}
    export_lora_adapter(clients._fitting._module.model, folder / "adapters" / "hr", wrong)
    with pytest.raises(InputError, match=r"hr/adapter_model.safetensors: .*expected shape \(4, 32\), got \(4, 31\)"):
        evaluate_run(folder, federation, clients, initial)


def test_missing_adapter_is_an_input_error(run, federation):
    folder, clients, initial = run
    (folder / "adapters" / "hr" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="hr/adapter_model.safetensors: expected a safetensors file, got no file"):
        evaluate_run(folder, federation, clients, initial)


def test_export_of_a_client_that_is_not_in_the_data_is_an_input_error(run, federation):
    folder, clients, initial = run
    path = folder / "client_lora_federated.json"
    path.write_text(path.read_text().replace('"client_1"', '"client_7"'))
    with pytest.raises(InputError, match="client_7"):
        evaluate_run(folder, federation, clients, initial)


NONE = Metrics(0.0, 0.0, 0, 0)


def test_clients_without_figures_are_left_out_of_the_means(federation):
    clients = FixedClients(Metrics(30.0, 5.0, 20, 4), NONE, NONE)
    found, mean = evaluate_departments(clients, federation, {"hr": {}, "sales": {}})
    assert found == {"hr": pytest.approx(metric_values(1.5, 0.25))}
    assert mean == pytest.approx(1.5)


def test_nobodys_figures_are_no_figures_and_no_nan(federation):
    assert evaluate_departments(FixedClients(NONE, NONE, NONE), federation, {"hr": {}, "sales": {}}) == ({}, math.inf)
    assert summary({}, {}) == {"departments": {}, "mean": {}}


def test_the_summary_holds_departments_with_figures_before_and_after():
    found = summary({"hr": metric_values(2.0, 0.1)}, {"hr": metric_values(1.0, 0.2), "sales": metric_values(9.0, 0.0)})
    assert list(found["departments"]) == ["hr"]
    assert found["mean"]["final"]["loss"] == pytest.approx(1.0)
