import logging

from fl_lightning.config import EvaluationConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.evaluation.panel import EvaluationPanel


def federation(**sizes):
    ids = [(name, f"c{k}") for name, size in sizes.items() for k in range(size)]
    return {f"{name}/{client}": ClientData(name, client, [], []) for name, client in ids}


def test_small_departments_are_evaluated_on_all_their_clients(caplog):
    caplog.set_level(logging.INFO)
    data = federation(hr=128, it=3)
    panel = EvaluationPanel.draw(data, EvaluationConfig(), seed=1)
    panel.log()
    assert (panel.data, panel.population, caplog.text) == (data, {}, "")


def test_a_large_department_is_sampled_by_the_seed_alone_and_the_log_says_so(caplog):
    caplog.set_level(logging.INFO)
    data = federation(hr=300, it=3)
    panel = EvaluationPanel.draw(data, EvaluationConfig(), seed=1)
    panel.log()
    assert panel.population == {"hr": 300, "it": 3}
    assert [client_id for client_id in data if client_id in panel.data] == list(panel.data)  # their order
    assert len(panel.data) == 128 + 3
    assert "evaluating hr on a sample of clients (hr: 128 of 300)" in caplog.text
    without_others = EvaluationPanel.draw(federation(hr=300), EvaluationConfig(), seed=1)
    assert list(without_others.data) == [client_id for client_id in panel.data if client_id.startswith("hr/")]
    assert list(EvaluationPanel.draw(data, EvaluationConfig(), seed=2).data) != list(panel.data)


def test_clients_outside_the_sample_are_not_in_it():
    panel = EvaluationPanel.draw(federation(hr=10), EvaluationConfig(clients_per_dept=3), seed=1)
    outside = [f"hr/c{k}" for k in range(10) if f"hr/c{k}" not in panel.data]
    assert len(outside) == 7
    assert all(panel.data.get(client_id) is None for client_id in outside)
