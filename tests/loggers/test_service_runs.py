import json

import pytest

from fl_lightning.errors import InputError
from fl_lightning.loggers.factory import make_loggers
from fl_lightning.loggers.service_runs import read_service_runs, save_service_runs

MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"
WANDB = "lightning.pytorch.loggers.WandbLogger"
CSV = "lightning.pytorch.loggers.CSVLogger"


class WandbLogger:
    version = "a1b2"


class CSVLogger:
    version = 3


def test_the_id_comes_back_as_the_argument_of_its_logger(tmp_path):
    specs = [{"class_path": CSV}, {"class_path": WANDB}]
    save_service_runs(specs, [CSVLogger(), WandbLogger()], tmp_path)
    assert read_service_runs(specs, tmp_path) == [{}, {"id": "a1b2"}]
    assert read_service_runs([{"class_path": MLFLOW}, {"class_path": WANDB}], tmp_path) == [{}, {"id": "a1b2"}]


def test_two_loggers_of_one_class_keep_their_order(tmp_path):
    second = WandbLogger()
    second.version = "c3"
    specs = [{"class_path": WANDB}, {"class_path": WANDB}]
    save_service_runs(specs, [WandbLogger(), second], tmp_path)
    assert read_service_runs(specs, tmp_path) == [{"id": "a1b2"}, {"id": "c3"}]


def test_without_services_there_is_no_file(tmp_path):
    save_service_runs([{"class_path": CSV}], [CSVLogger()], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert read_service_runs([{"class_path": WANDB}], tmp_path) == [{}]


@pytest.mark.parametrize("text", ["{", "3", '[{"id": "x"}]', "[3]"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "loggers.json").write_text(text)
    with pytest.raises(InputError, match="loggers.json: expected a list"):
        read_service_runs([{"class_path": WANDB}], tmp_path)


def test_mlflow_goes_on_in_its_run(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed; the test extra has it")
    (first,) = make_loggers([{"class_path": MLFLOW}], tmp_path)
    first.log_metrics({"loss": 2.0}, step=1)
    first.finalize("failed")
    (second,) = make_loggers([{"class_path": MLFLOW}], tmp_path, fresh=False)
    second.log_metrics({"loss": 1.0}, step=2)
    second.finalize("success")
    assert second.run_id == first.run_id == json.loads((tmp_path / "loggers.json").read_text())[0]["id"]
    (metric,) = (tmp_path / "mlruns").rglob("metrics/loss")
    assert [line.split()[1:] for line in metric.read_text().splitlines()] == [["2.0", "1"], ["1.0", "2"]]
