"""Which models a run offers, and which of them are new."""

import json
import os
import shutil

import pytest

from fl_lightning.errors import InputError
from fl_lightning.serving.model_registry import FILES, Offer


def adapter(folder, content="x"):
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (folder / file).write_text(content)
    return folder


def client_round(run, number, *clients):
    """Write the adapters of a round's clients, and the index, which keeps the rounds before."""
    path = run / "client_lora_federated.json"
    rounds = json.loads(path.read_text())["rounds"] if path.exists() else {}
    places = {client: f"client_exports/hr/round_{number}_{client}" for client in clients}
    for place in places.values():
        adapter(run / place)
    path.write_text(json.dumps({"rounds": {**rounds, str(number): {"hr": places}}}))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "version_0"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    os.utime(folder / "config.yaml", (1000, 1000))
    for name in ("hr", "finance"):
        adapter(folder / "adapters" / name)
    (folder / "dept_lora_federated.json").write_text(json.dumps({n: f"adapters/{n}" for n in ("hr", "finance")}))
    client_round(folder, 1, "client_0", "client_1")
    return folder


def test_all_are_new_at_first_and_none_after_that(run):
    offer = Offer(run)
    assert offer.look() == {
        "finance": run / "adapters/finance",
        "hr": run / "adapters/hr",
        "hr/client_0": run / "client_exports/hr/round_1_client_0",
        "hr/client_1": run / "client_exports/hr/round_1_client_1",
    }
    assert list(offer.created) == ["finance", "hr", "hr/client_0", "hr/client_1", "base"]
    assert offer.look() == {}


def test_a_model_is_as_old_as_its_weights(run):
    os.utime(run / "adapters/hr/adapter_model.safetensors", (2000, 2000))
    offer = Offer(run)
    offer.look()
    assert (offer.created["hr"], offer.created["base"]) == (2000, 1000)


@pytest.mark.parametrize("file", FILES)
def test_only_an_adapter_that_has_changed_is_new(run, file):
    offer = Offer(run)
    offer.look()
    (run / "adapters/hr" / file).write_text("longer")
    assert offer.look() == {"hr": run / "adapters/hr"}
    assert offer.look() == {}


def test_an_adapter_replaced_by_one_of_like_size_and_age_is_new(run):
    offer = Offer(run)
    offer.look()
    path = run / "adapters/hr/adapter_model.safetensors"
    before = path.stat()
    (run / "other").write_text("y")
    os.replace(run / "other", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(offer.look()) == ["hr"]


def test_a_later_round_brings_clients_and_their_newer_adapters(run):
    offer = Offer(run)
    offer.look()
    client_round(run, 2, "client_1", "client_2")
    assert offer.look() == {
        "hr/client_1": run / "client_exports/hr/round_2_client_1",
        "hr/client_2": run / "client_exports/hr/round_2_client_2",
    }
    assert "hr/client_2" in offer.created


def test_one_that_has_gone_stays_on_offer(run):
    offer = Offer(run)
    offer.look()
    shutil.rmtree(run / "client_exports/hr/round_1_client_0")
    assert offer.look() == {}
    assert "hr/client_0" in offer.created


def test_without_clients_only_shared_ones_are_offered(run):
    assert list(Offer(run, clients=False).look()) == ["finance", "hr"]


def test_only_those_asked_for_are_offered(run):
    offer = Offer(run, only=["hr/client_1", "hr"])
    assert list(offer.look()) == ["hr", "hr/client_1"]
    assert list(offer.created) == ["hr", "hr/client_1"]
    alone = Offer(run, only=["base"])
    assert alone.look() == {}
    assert list(alone.created) == ["base"]


@pytest.mark.parametrize(("clients", "name"), [(True, "finanse"), (True, "hr/client_9"), (False, "hr/client_0")])
def test_one_asked_for_that_is_not_there_is_refused(run, clients, name):
    with pytest.raises(InputError, match=rf"--models {name}: no such adapter in .*; wanted some of finance, hr"):
        Offer(run, clients=clients, only=[name]).look()


def test_one_asked_for_that_has_gone_does_not_keep_others_from_being_new(run):
    offer = Offer(run, only=["hr/client_0", "hr"])
    offer.look()
    shutil.rmtree(run / "client_exports/hr/round_1_client_0")
    adapter(run / "adapters/hr", "newer")
    assert list(offer.look()) == ["hr"]


def test_a_department_called_as_the_base_is_refused(run):
    (run / "dept_lora_federated.json").write_text('{"base": "adapters/hr"}')
    with pytest.raises(InputError, match="a department is called 'base'"):
        Offer(run).look()


@pytest.mark.parametrize("name", ["../hr", "a/b", "", "."])
def test_a_name_that_is_none_is_refused(run, name):
    (run / "dept_lora_federated.json").write_text(json.dumps({name: "adapters/hr"}))
    with pytest.raises(InputError, match="rename"):
        Offer(run).look()


@pytest.mark.parametrize("file", FILES)
def test_half_an_adapter_is_passed_over_until_it_is_whole(run, file, caplog):
    offer = Offer(run)
    offer.look()
    adapter(run / "adapters/finance", "newer")  # whole, and looked at first
    (run / "adapters/hr" / file).unlink()
    assert list(offer.look()) == ["finance"]  # the others do not wait for it
    assert f"adapters/hr: no {file}" in caplog.text
    assert "hr" in offer.created
    adapter(run / "adapters/hr", "newer")
    assert list(offer.look()) == ["hr"]
    (run / "adapters/hr" / file).unlink()
    with pytest.raises(InputError, match=f"adapters/hr: no {file} .*wanted adapter_config.json and adapter_model"):
        Offer(run).look()


def test_a_run_without_adapters_is_refused(tmp_path):
    with pytest.raises(InputError, match="dept_lora_federated.json"):
        Offer(tmp_path).look()


def test_nothing_is_offered_before_it_was_told(run):
    offer, told = Offer(run), []
    offer.look(lambda changed: told.append((list(changed), list(offer.created))))
    assert told == [(["finance", "hr", "hr/client_0", "hr/client_1"], [])]
    offer.look(told.append)
    assert len(told) == 1  # nothing was new


def test_what_could_not_be_told_is_new_still(run):
    offer = Offer(run)

    def fail(changed):
        raise OSError("the queue has gone")

    with pytest.raises(OSError, match="gone"):
        offer.look(fail)
    assert offer.created == {}
    assert len(offer.look()) == 4
