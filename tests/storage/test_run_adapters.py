import json

import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.run_adapters import (
    MixtureSource,
    all_adapters,
    all_models,
    chosen_adapters,
    client_adapters,
    client_exports,
    client_mixtures,
    folder_names,
    shared_adapters,
)

PLACES = {"hr": "adapters/hr", "finance": "adapters/finance"}
ROUNDS = {
    "rounds": {
        "2": {"hr": {"client_0": "client_exports/hr/round_2_client_0"}},
        "10": {"hr": {"client_10": "x/client_10", "client_2": "x/client_2"}},
    }
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "version_0"
    for place in ("client_exports/hr/round_2_client_0", "x/client_10", "x/client_2"):
        (folder / place).mkdir(parents=True)
    (folder / "dept_lora_federated.json").write_text(json.dumps(PLACES))
    (folder / "client_lora_federated.json").write_text(json.dumps(ROUNDS))
    return folder


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


WEIGHTS = {"own": 0.598, "department": 0.3, "root": 0.002, "base": 0.1}


@pytest.fixture
def personalize(run):
    """Function that writes what `personalize` writes about client_0 of hr, with some values replaced."""

    def write(choose="mixture", **replaced):
        folders = {"own": "personal/levels/own/hr/client_0", "department": "personal/levels/department/hr"}
        for place in (*folders.values(), "personal/adapters/hr/client_0"):
            (run / place).mkdir(parents=True, exist_ok=True)
        values = {"weights": WEIGHTS, "chosen": "department", "adapters": folders, **replaced}
        (run / "personal_eval.json").write_text(json.dumps({"choose": choose, "clients": {"hr/client_0": values}}))
        return run

    return write


def test_a_mixture_has_the_levels_whose_weight_counts(personalize):
    run = personalize()
    folders = (run / "personal/levels/own/hr/client_0", run / "personal/levels/department/hr", None)
    source = client_mixtures(run)["hr/client_0+"]
    assert source.folders == folders
    assert source.weights == pytest.approx((0.598 / 0.998, 0.3 / 0.998, 0.1 / 0.998))
    assert sum(source.weights) == pytest.approx(1.0, abs=1e-12)


def test_with_choose_level_the_level_answers_alone(personalize):
    run = personalize(choose="level")
    folder = run / "personal/levels/department/hr"
    assert client_mixtures(run) == {"hr/client_0+": MixtureSource((folder,), (1.0,))}


def test_what_personalize_gives_has_names_beside_those_of_the_run(run, personalize):
    before = list(all_models(run))
    personalize()
    assert list(all_models(run)) == [*before, "hr/client_0+adapter", "hr/client_0+"]
    assert all_adapters(run)["hr/client_0"] == run / "client_exports/hr/round_2_client_0"  # as before
    assert chosen_adapters(run, ["hr/client_0+adapter"]) == {
        "hr/client_0+adapter": run / "personal/adapters/hr/client_0"
    }
    assert folder_names(["hr/client_0", "hr/client_0+adapter"])["hr/client_0+adapter"] == "hr-client_0-adapter"
    with pytest.raises(InputError, match=r"hr/client_0\+: a mixture .*; hr/client_0\+adapter is one adapter"):
        chosen_adapters(run, ["hr/client_0+"])


def test_a_run_personalized_without_level_adapters_says_what_to_do(personalize):
    run = personalize(adapters={})
    with pytest.raises(InputError, match=r"hr/client_0: expected .* its level own, .*fl-lightning personalize --run"):
        client_mixtures(run)
    with pytest.raises(InputError, match="fl-lightning personalize --run"):
        all_models(run, "hr/client_0+")
    assert "hr/client_0+" not in all_models(run)
    assert "hr/client_0+adapter" in all_models(run)


def test_a_level_adapter_outside_the_run_is_refused(personalize):
    with pytest.raises(InputError, match="leads out of the run"):
        client_mixtures(personalize(adapters={"own": "../elsewhere"}))


@pytest.mark.parametrize(
    "replaced",
    [
        {"weights": {"own": 0.5}, "chosen": "own"},
        {"weights": {"own": 2.0, "root": -1.0}, "chosen": "own"},
        {"weights": {"own": "1"}, "chosen": "own"},
        {"weights": [], "chosen": "own"},
        {"chosen": "team"},
        {"chosen": []},
        {"adapters": "own"},
    ],
)
def test_choices_of_another_shape_are_refused(personalize, replaced):
    with pytest.raises(InputError, match="as personalize writes it"):
        client_mixtures(personalize(**replaced))


@pytest.mark.parametrize("value", [[], {}, {"clients": []}, {"clients": {"hr/client_0": None}}])
def test_a_file_of_another_shape_is_refused(run, value):
    (run / "personal_eval.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="as personalize writes it"):
        all_adapters(run)


def test_a_client_name_that_is_no_folder_name_is_refused(run):
    values = {"weights": {"own": 1.0}, "chosen": "own"}
    (run / "personal_eval.json").write_text(json.dumps({"clients": {"hr/../..": values}}))
    with pytest.raises(InputError, match="rename"):
        all_adapters(run)


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
