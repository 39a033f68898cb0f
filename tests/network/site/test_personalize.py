"""A site chooses by itself what `personalize` chooses in one process, from what the server has sent it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_folder import make_once

from fl_lightning.cli import main
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.state import FederationState
from fl_lightning.network.site.levels import write_levels
from fl_lightning.network.site.own_adapter import to_store
from fl_lightning.network.site.personalize import personalize_site
from fl_lightning.network.site.store import SiteStore
from fl_lightning.personalization.shared_levels import levels_by_department
from fl_lightning.runs.fit import fit
from fl_lightning.runs.personalize import personalize

pytestmark = pytest.mark.xdist_group("site_personalize")

CLIENT = "hr/client_1"
OPTIONS = ["--rounds", "2", "--lora-r", "2", "--learning-rate", "5e-3", "--batch-size", "2", "--logging.samples", "0"]
OPTIONS += ["--data.selection_fraction", "0.25", "--federation.combiner", "fedavg", "--clients-per-dept", "2"]


@pytest.fixture(scope="module")
def data(cut_departments, tmp_path_factory):
    return make_once(tmp_path_factory, "site_data", lambda folder: cut_departments(folder, 2, 8, 3))


@pytest.fixture(scope="module")
def options(data, micro_base):
    return [*OPTIONS, "--model.name_or_path", micro_base, "--data", str(data)]


@pytest.fixture(scope="module")
def run_folder(options, tmp_path_factory):
    """A run in one process, personalized: the reference."""

    def make(folder):
        fit(parse_config([*options, "--output", str(folder)]))
        personalize(folder / "version_0")

    return make_once(tmp_path_factory, "personalized_run", make) / "version_0"


@pytest.fixture
def site(run_folder, options, tmp_path):
    """The folder of a site that took part in the same run."""
    state = newest_checkpoint(run_folder)[0]
    levels = levels_by_department({name: state.adapter(name) for name in state.departments}, state.cluster_assignments)
    config = parse_config([*options, "--rounds", "9", "--output", str(tmp_path)])
    write_levels(tmp_path / "run", config, CLIENT, levels["hr"], 2)
    return tmp_path / "run"


def test_a_site_gets_what_one_process_gives_its_client(site, run_folder, capsys):
    assert main(["personalize", "--run", str(site)]) == 0
    assert "hr/client_1" in capsys.readouterr().out
    result = json.loads((site / "personal_eval.json").read_text())
    expected = json.loads((run_folder / "personal_eval.json").read_text())["clients"][CLIENT]
    values = result["clients"][CLIENT]
    assert list(result["clients"]) == [CLIENT]
    assert values["own"] == pytest.approx(expected["own"], rel=1e-5)
    # The root of a run is trained, and between machines it is the mean of the departments.
    assert set(values["weights"]) == set(expected["weights"])
    assert sum(values["weights"].values()) == pytest.approx(1.0)
    assert (site / "personal" / "adapters" / CLIENT / "adapter_model.safetensors").is_file()
    assert (site / values["adapters"]["department"] / "adapter_model.safetensors").is_file()
    own = [f / "personal/own/version_0/client_exports/hr/round_2_client_1" for f in (site, run_folder)]
    at_site, in_run = (load_file(folder / "adapter_model.safetensors") for folder in own)
    for name in in_run:  # the last bits depend on who shares a row
        torch.testing.assert_close(at_site[name], in_run[name], rtol=1e-3, atol=1e-5)


def test_a_second_call_trains_nothing_again(site, monkeypatch):
    first = personalize_site(site)
    monkeypatch.setattr("fl_lightning.runs.chains.run_fit", lambda *_, **__: pytest.fail("trained again"))
    assert personalize_site(site) == first


def test_after_a_run_with_masks_a_site_chooses_alone_as_ever(site, run_folder):
    config = (site / "config.yaml").read_text()
    for plain, masked in (
        ("secure_aggregation: false", "secure_aggregation: true"),
        ("num_clusters: 2", "num_clusters: 1"),
    ):
        assert config.count(plain) == 1
        config = config.replace(plain, masked)
    (site / "config.yaml").write_text(config)
    expected = json.loads((run_folder / "personal_eval.json").read_text())["clients"][CLIENT]
    assert personalize_site(site)["clients"][CLIENT]["own"] == pytest.approx(expected["own"], rel=1e-5)


def test_without_own_adapter_the_site_chooses_between_what_it_was_sent(site):
    config = (site / "config.yaml").read_text()
    assert "own: after" in config
    (site / "config.yaml").write_text(config.replace("own: after", "own: 'off'"))
    result = personalize_site(site)
    assert "own" not in result["clients"][CLIENT]["weights"]
    assert not (site / "personal" / "own").exists()


def test_an_own_adapter_that_was_trained_beside_the_run_is_taken_and_not_trained_again(site, run_folder, monkeypatch):
    trained, _ = newest_checkpoint(run_folder / "personal" / "own" / "version_0")
    own = FederationState(2, trained.initial, {}, own_adapters={CLIENT: trained.final_own_adapter(CLIENT)})
    SiteStore(site).save(2, to_store(own))
    config = (site / "config.yaml").read_text()
    (site / "config.yaml").write_text(config.replace("own: after", "own: during"))
    monkeypatch.setattr("fl_lightning.runs.chains.run_fit", lambda *_, **__: pytest.fail("trained again"))
    expected = json.loads((run_folder / "personal_eval.json").read_text())["clients"][CLIENT]
    assert personalize_site(site)["clients"][CLIENT]["own"] == pytest.approx(expected["own"], rel=1e-5)


def lend(site, client_id, factor=1.0):
    """As if another site had lent its own adapter, for which that of the department stands in."""
    levels = load_file(site / "received" / "levels.safetensors")
    own = {n.split("|")[1]: factor * t for n, t in levels.items() if n.startswith("department|")}
    save_file({f"{client_id}|{n}": t for n, t in own.items()}, site / "received" / "mates.safetensors")
    config = (site / "config.yaml").read_text()
    (site / "config.yaml").write_text(config.replace("mates: 'off'", "mates: all").replace("own: after", "own: during"))
    return own


def test_adapters_that_others_lend_are_components_of_the_mixture(site):
    own = lend(site, "it/client_3")
    values = personalize_site(site)["clients"][CLIENT]
    assert values["mates"].keys() == {"it/client_3"}
    assert values["weights"]["mates"] == pytest.approx(values["mates"]["it/client_3"])
    assert sum(values["weights"].values()) == pytest.approx(1.0)
    # It is the department's adapter under another name: EM cannot tell them apart, the prior divides it between both.
    assert values["weights"]["mates"] == pytest.approx(values["weights"]["department"], rel=0.5)
    exported = load_file(site / values["adapters"]["mates it/client_3"] / "adapter_model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in own.items())
    # The config, not the file, says whether they are used.
    (site / "config.yaml").write_text((site / "config.yaml").read_text().replace("mates: all", "mates: department"))
    assert "mates" not in personalize_site(site)["clients"][CLIENT]["weights"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("selection", "expected a run with selection records"),
        ("refit", "personal.refit: expected false at a site"),
        (
            "mates",
            "mates.safetensors: hr/client_0: .*expected finite numbers",
        ),
        ("mate", "expected 1 to 128 letters"),
        ("rank", "expected a product of shape"),
        ("names", "expected the tensors of this model's adapter"),
        ("nan", "expected finite numbers"),
        ("file", "levels.safetensors"),
        ("client", "expected the id of a client"),
    ],
)
def test_what_does_not_fit_is_one_line(site, fault, message):
    config = site / "config.yaml"
    if fault in ("mate", "mates"):
        lend(site, "hr/.." if fault == "mate" else "hr/client_0", factor=1.0 if fault == "mate" else torch.nan)
    elif fault in ("selection", "refit"):
        change = {
            "selection": ("selection_fraction: 0.25", "selection_fraction: 0"),
            "refit": ("refit: false", "refit: true"),
        }
        assert change[fault][0] in config.read_text()
        config.write_text(config.read_text().replace(*change[fault]))
    elif fault == "file":
        (site / "received" / "levels.safetensors").write_bytes(b"none")
    elif fault == "client":
        (site / "received" / "site.json").write_text("{}")
    else:
        path = site / "received" / "levels.safetensors"
        tensors = load_file(path)
        name = next(n for n in tensors if n.startswith("root|") and "lora_A" in n)
        if fault == "rank":
            tensors[name] = tensors[name][:-1].clone()
        elif fault == "nan":
            tensors[name][0, 0] = torch.nan
        else:
            tensors[f"{name}.more"] = tensors.pop(name)
        save_file(tensors, path)
    with pytest.raises(InputError, match=message) as caught:
        personalize_site(site)
    assert "\n" not in str(caught.value)
    assert not (site / "personal_eval.json").exists()


@pytest.mark.parametrize("levels", [["root"], ["department", "own"], ["department", "../../x"]])
def test_levels_that_no_server_sends_are_not_written(tmp_path, levels):
    state = {"q.lora_A": torch.ones(1, 2), "q.lora_B": torch.ones(2, 1)}
    with pytest.raises(ValueError, match="levels: expected department"):
        write_levels(tmp_path / "run", parse_config([]), CLIENT, dict.fromkeys(levels, state), 2)
    assert not (tmp_path / "run").exists()
