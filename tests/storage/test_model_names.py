import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.model_names import all_adapters, all_models, chosen_adapters, folder_names


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


def test_departments_mixtures_have_names_too(run, mix):
    before = list(all_models(run))
    assert list(all_models(mix())) == [*before, "hr+"]
    with pytest.raises(InputError, match=r"hr\+: a mixture has several adapters, which only serve and chat can use$"):
        chosen_adapters(run, ["hr+"])


def test_mixtures_without_adapters_are_refused_only_if_one_is_wanted(personalize):
    run = personalize(adapters={})
    with pytest.raises(InputError, match="fl-lightning personalize --run"):
        all_models(run, "hr/client_0+")
    assert "hr/client_0+" not in all_models(run)
    assert "hr/client_0+adapter" in all_models(run, "hr")
