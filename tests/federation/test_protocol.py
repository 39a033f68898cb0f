import json

import torch

from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics, header_of, update_from


def test_task_survives_its_header():
    task = ClientTask("hr/c0", 3, {"a": torch.ones(1)}, 7, evaluate=True)
    header = json.loads(json.dumps(header_of(task)))
    assert ClientTask(**header, start=task.start) == task
    assert task.department == "hr"


def test_update_survives_its_header():
    for metrics in (None, Metrics(1.5, 2.0, 3, 4)):
        update = ClientUpdate("it/c1", 2, {"a": torch.ones(1)}, 5, 60, [2.0, 1.0], 0.25, metrics)
        header = json.loads(json.dumps(header_of(update)))
        assert update_from(header, update.state) == update
    assert update.department == "it"


def test_metrics_add_up():
    assert Metrics(1.0, 2.0, 3, 4) + Metrics(10.0, 20.0, 30, 40) == Metrics(11.0, 22.0, 33, 44)
