"""Which models a run offers, and which of them are new."""

import json
import os
import shutil

import pytest

from fl_lightning.errors import InputError
from fl_lightning.serving.model_registry import FILES, ModelRegistry
from fl_lightning.storage.forgotten import mark_forgotten
from fl_lightning.storage.personal_models import MixtureSource


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
    registry = ModelRegistry(run)
    assert registry.refresh() == {
        "finance": run / "adapters/finance",
        "hr": run / "adapters/hr",
        "hr/client_0": run / "client_exports/hr/round_1_client_0",
        "hr/client_1": run / "client_exports/hr/round_1_client_1",
    }
    assert list(registry.created) == ["finance", "hr", "hr/client_0", "hr/client_1", "base"]
    assert registry.refresh() == {}


def test_a_model_is_as_old_as_its_weights(run):
    os.utime(run / "adapters/hr/adapter_model.safetensors", (2000, 2000))
    registry = ModelRegistry(run)
    registry.refresh()
    assert (registry.created["hr"], registry.created["base"]) == (2000, 1000)


@pytest.mark.parametrize("file", FILES)
def test_only_an_adapter_that_has_changed_is_new(run, file):
    registry = ModelRegistry(run)
    registry.refresh()
    (run / "adapters/hr" / file).write_text("longer")
    assert registry.refresh() == {"hr": run / "adapters/hr"}
    assert registry.refresh() == {}


def test_an_adapter_replaced_by_one_of_like_size_and_age_is_new(run):
    registry = ModelRegistry(run)
    registry.refresh()
    path = run / "adapters/hr/adapter_model.safetensors"
    before = path.stat()
    (run / "other").write_text("y")
    os.replace(run / "other", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(registry.refresh()) == ["hr"]


def test_a_later_round_brings_clients_and_their_newer_adapters(run):
    registry = ModelRegistry(run)
    registry.refresh()
    client_round(run, 2, "client_1", "client_2")
    assert registry.refresh() == {
        "hr/client_1": run / "client_exports/hr/round_2_client_1",
        "hr/client_2": run / "client_exports/hr/round_2_client_2",
    }
    assert "hr/client_2" in registry.created


def test_one_that_has_gone_stays_on_offer(run):
    registry = ModelRegistry(run)
    registry.refresh()
    shutil.rmtree(run / "client_exports/hr/round_1_client_0")
    assert registry.refresh() == {}
    assert "hr/client_0" in registry.created


def test_without_clients_only_shared_ones_are_offered(run):
    assert list(ModelRegistry(run, clients=False).refresh()) == ["finance", "hr"]


def test_only_those_asked_for_are_offered(run):
    registry = ModelRegistry(run, only=["hr/client_1", "hr"])
    assert list(registry.refresh()) == ["hr", "hr/client_1"]
    assert list(registry.created) == ["hr", "hr/client_1"]
    alone = ModelRegistry(run, only=["base"])
    assert alone.refresh() == {}
    assert list(alone.created) == ["base"]


@pytest.mark.parametrize(("clients", "name"), [(True, "finanse"), (True, "hr/client_9"), (False, "hr/client_0")])
def test_one_asked_for_that_is_not_there_is_refused(run, clients, name):
    with pytest.raises(InputError, match=rf"--models {name}: no such adapter in .*; expected some of finance, hr"):
        ModelRegistry(run, clients=clients, only=[name]).refresh()


def test_one_asked_for_that_has_gone_does_not_keep_others_from_being_new(run):
    registry = ModelRegistry(run, only=["hr/client_0", "hr"])
    registry.refresh()
    shutil.rmtree(run / "client_exports/hr/round_1_client_0")
    adapter(run / "adapters/hr", "newer")
    assert list(registry.refresh()) == ["hr"]


def test_a_department_called_as_the_base_is_refused(run):
    (run / "dept_lora_federated.json").write_text('{"base": "adapters/hr"}')
    with pytest.raises(InputError, match="a department is called 'base'"):
        ModelRegistry(run).refresh()


@pytest.mark.parametrize("name", ["../hr", "a/b", "", "."])
def test_a_name_that_is_none_is_refused(run, name):
    (run / "dept_lora_federated.json").write_text(json.dumps({name: "adapters/hr"}))
    with pytest.raises(InputError, match="rename"):
        ModelRegistry(run).refresh()


@pytest.mark.parametrize("file", FILES)
def test_half_an_adapter_is_passed_over_until_it_is_whole(run, file, caplog):
    registry = ModelRegistry(run)
    registry.refresh()
    adapter(run / "adapters/finance", "newer")  # whole, and looked at first
    (run / "adapters/hr" / file).unlink()
    assert list(registry.refresh()) == ["finance"]  # the others do not wait for it
    assert f"adapters/hr: no {file}" in caplog.text
    assert "hr" in registry.created
    adapter(run / "adapters/hr", "newer")
    assert list(registry.refresh()) == ["hr"]
    (run / "adapters/hr" / file).unlink()
    with pytest.raises(InputError, match=f"adapters/hr: no {file} .*expected adapter_config.json and adapter_model"):
        ModelRegistry(run).refresh()


def test_a_run_without_adapters_is_refused(tmp_path):
    with pytest.raises(InputError, match="dept_lora_federated.json"):
        ModelRegistry(tmp_path).refresh()


def test_nothing_is_offered_before_it_was_told(run):
    registry, told = ModelRegistry(run), []
    registry.refresh(lambda changed: told.append((list(changed), list(registry.created))))
    assert told == [(["finance", "hr", "hr/client_0", "hr/client_1"], [])]
    registry.refresh(told.append)
    assert len(told) == 1  # nothing was new


def test_what_could_not_be_told_is_new_still(run):
    registry = ModelRegistry(run)

    def fail(changed):
        raise OSError("the queue has gone")

    with pytest.raises(OSError, match="gone"):
        registry.refresh(fail)
    assert registry.created == {}
    assert len(registry.refresh()) == 4


def personalized(run, weights, keeps_levels=True):
    """Write what `personalize` has for client_0 of hr."""
    folders = {"own": "personal/levels/own/hr/client_0", "root": "personal/levels/root"}
    adapter(run / "personal/adapters/hr/client_0")
    for folder in folders.values() if keeps_levels else ():
        adapter(run / folder)
    values = {"chosen": "own", "weights": weights, **({"adapters": folders} if keeps_levels else {})}
    (run / "personal_eval.json").write_text(json.dumps({"choose": "mixture", "clients": {"hr/client_0": values}}))


def test_a_mixture_is_new_with_each_of_its_adapters_and_with_its_weights(run):
    registry = ModelRegistry(run)
    registry.refresh()
    personalized(run, {"own": 0.5, "root": 0.5})
    folders = (run / "personal/levels/own/hr/client_0", run / "personal/levels/root")
    mixture = MixtureSource(folders, (0.5, 0.5))
    assert registry.refresh() == {"hr/client_0+adapter": run / "personal/adapters/hr/client_0", "hr/client_0+": mixture}
    assert registry.refresh() == {}
    adapter(folders[1], "newer")
    os.utime(folders[1] / "adapter_model.safetensors", (4e9, 4e9))
    assert registry.refresh() == {"hr/client_0+": mixture}
    assert registry.created["hr/client_0+"] == 4_000_000_000
    personalized(run, {"own": 0.25, "root": 0.75})
    assert registry.refresh()["hr/client_0+"].weights == (0.25, 0.75)
    (folders[0] / FILES[1]).unlink()
    personalized_before = registry.created["hr/client_0+"]
    assert registry.refresh() == {}
    assert registry.created["hr/client_0+"] == personalized_before


def test_a_mixture_of_the_base_alone_is_as_old_as_the_run(run):
    personalized(run, {"own": 0.0, "root": 0.0, "base": 1.0})
    registry = ModelRegistry(run, only=["hr/client_0+"])
    values = json.loads((run / "personal_eval.json").read_text())
    values["clients"]["hr/client_0"]["chosen"] = "base"
    (run / "personal_eval.json").write_text(json.dumps(values))
    assert registry.refresh() == {"hr/client_0+": MixtureSource((None,), (1.0,))}
    assert registry.created == {"hr/client_0+": 1000}


def test_mixtures_without_adapters_are_said_once_and_the_rest_is_offered(run, caplog):
    personalized(run, {"own": 0.5, "root": 0.5}, keeps_levels=False)
    registry = ModelRegistry(run)
    assert "hr/client_0+" not in registry.refresh()
    assert "hr/client_0+adapter" in registry.created
    registry.refresh()
    assert caplog.text.count("no mixtures of adapters are served") == 1
    assert f"fl-lightning personalize --run {run}" in caplog.text
    with pytest.raises(InputError, match="fl-lightning personalize --run"):
        ModelRegistry(run, only=["hr/client_0+"]).refresh()


def test_without_clients_there_are_no_mixtures(run):
    personalized(run, {"own": 0.5, "root": 0.5})
    assert list(ModelRegistry(run, clients=False).refresh()) == ["finance", "hr"]


def test_a_department_has_its_mixture_beside_its_adapter(run):
    adapter(run / "mixture_levels/root")
    folders = {"department": "adapters/hr", "root": "mixture_levels/root"}
    values = {"weights": {"department": 0.75, "root": 0.25}, "losses": {}, "adapters": folders}
    (run / "department_mixtures.json").write_text(json.dumps({"round": 1, "departments": {"hr": values}}))
    mixture = MixtureSource((run / "adapters/hr", run / "mixture_levels/root"), (0.75, 0.25))
    assert ModelRegistry(run).refresh()["hr+"] == mixture


def test_a_forgotten_run_is_served_no_more(run, caplog):
    registry = ModelRegistry(run)
    registry.refresh()
    mark_forgotten(run, {"new_run": "version_1"})
    for _ in range(2):
        assert registry.refresh() == {}
        assert list(registry.created) == ["base"]
    assert caplog.text.count("served no more") == 1
    with pytest.raises(InputError, match="taken out"):
        ModelRegistry(run).refresh()
