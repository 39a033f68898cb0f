import json

import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.personal_models import (
    MixtureSource,
    client_mixtures,
    department_mixtures,
    personal_adapters,
)


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


def test_a_run_personalized_without_level_adapters_says_what_to_do(personalize):
    run = personalize(adapters={})
    with pytest.raises(InputError, match=r"hr/client_0: expected .* its level own, .*fl-lightning personalize --run"):
        client_mixtures(run)


def test_a_client_whose_own_adapter_has_gates_has_a_mixture_only_without_it(personalize):
    assert client_mixtures(personalize(gated=True, adapters={"department": "personal/levels/department/hr"})) == {}
    weights = {"own": 0.004, "department": 0.896, "base": 0.1}
    run = personalize(gated=True, weights=weights, adapters={"department": "personal/levels/department/hr"})
    assert client_mixtures(run)["hr/client_0+"].folders == (run / "personal/levels/department/hr", None)


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
        client_mixtures(run)


def test_a_client_name_that_is_no_folder_name_is_refused(run):
    values = {"weights": {"own": 1.0}, "chosen": "own"}
    (run / "personal_eval.json").write_text(json.dumps({"clients": {"hr/../..": values}}))
    with pytest.raises(InputError, match="rename"):
        client_mixtures(run)


def test_a_run_that_was_not_personalized_has_none(run):
    assert client_mixtures(run) == department_mixtures(run) == personal_adapters(run) == {}


def test_a_department_has_a_mixture_of_the_levels_whose_weight_counts(mix):
    run = mix()
    source = department_mixtures(run)["hr+"]
    assert source.folders == (run / "adapters/hr", run / "mixture_levels/root")
    assert source.weights == pytest.approx((0.748 / 0.998, 0.25 / 0.998))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"weights": {"department": 0.5}}, "as fit writes it"),
        ({"weights": []}, "as fit writes it"),
        ({"adapters": {}}, r"hr: expected the adapter of its level department, got none; copy mixture_levels/"),
        ({"adapters": {"department": "../hr"}}, "leads out of the run"),
    ],
)
def test_departments_mixtures_of_another_shape_are_refused(mix, replaced, message):
    with pytest.raises(InputError, match=message):
        department_mixtures(mix(**replaced))
