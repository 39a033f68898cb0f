import json

import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.run_adapters import client_adapters, client_exports, shared_adapters


def test_departments_and_groups_are_found(run):
    assert shared_adapters(run) == {"finance": run / "adapters/finance", "hr": run / "adapters/hr"}
    (run / "group_lora_federated.json").write_text('{"office": "adapters/office"}')
    assert list(shared_adapters(run)) == ["finance", "hr", "office"]


def test_each_client_has_the_adapter_of_its_own_last_round(run):
    assert client_adapters(run) == {
        "hr/client_0": (2, run / "client_exports/hr/round_2_client_0"),
        "hr/client_2": (10, run / "x/client_2"),
        "hr/client_10": (10, run / "x/client_10"),
    }
    assert list(client_adapters(run)) == ["hr/client_0", "hr/client_2", "hr/client_10"]


def test_a_client_whose_export_was_dropped_is_not_offered(run):
    (run / "x/client_2").rmdir()
    assert list(client_adapters(run)) == ["hr/client_0", "hr/client_10"]


def test_a_run_without_exports_has_no_clients(run):
    (run / "client_lora_federated.json").unlink()
    assert client_adapters(run) == {}
    with pytest.raises(InputError, match="client_lora_federated.json"):
        client_exports(run)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "a\0b", 3])
def test_an_adapter_outside_the_run_is_refused(run, place):
    (run / "dept_lora_federated.json").write_text(json.dumps({"hr": place}))
    with pytest.raises(InputError, match="within"):
        shared_adapters(run)


@pytest.mark.parametrize("name", ["../hr", "a/b", "..", ""])
def test_a_name_that_is_no_folder_name_is_refused(run, name):
    (run / "dept_lora_federated.json").write_text(json.dumps({name: "adapters/hr"}))
    with pytest.raises(InputError, match="rename"):
        shared_adapters(run)


@pytest.mark.parametrize("value", [[], {"rounds": []}, {"rounds": {"x": {}}}, {"rounds": {"1": []}}])
def test_an_index_of_another_shape_is_refused(run, value):
    (run / "client_lora_federated.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="as fit writes it"):
        client_adapters(run)


def test_under_early_stopping_a_client_has_the_adapter_of_its_best_round(run):
    rounds = {str(n): {"hr": {"client_0": f"x/{n}"}} for n in (2, 3, 5)}
    for n in rounds:
        (run / f"x/{n}").mkdir()
    (run / "client_lora_federated.json").write_text(json.dumps({"rounds": rounds}))
    (run / "early_stopping.json").write_text(json.dumps({"hr": {"round": 5}, "hr/client_0": {"round": 3, "loss": 1.0}}))
    assert client_adapters(run) == {"hr/client_0": (3, run / "x/3")}
    (run / "early_stopping.json").write_text('{"hr/client_0": 3}')
    with pytest.raises(InputError, match="early_stopping.json: expected {name: {round, loss}}"):
        client_adapters(run)
