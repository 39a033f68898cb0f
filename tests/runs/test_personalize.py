"""`personalize` on small runs: what it trains, what it chooses, and what it refuses."""

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from run_files import SELECTION
from safetensors.torch import load_file

from fl_lightning.cli import main
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.runs.chains import as_one_department, train_chain
from fl_lightning.runs.personalize import personalize, show
from fl_lightning.storage.personal_models import client_mixtures
from fl_lightning.storage.run_adapters import client_adapters
from fl_lightning.training.local_clients import LocalClients

pytestmark = pytest.mark.xdist_group("personalize")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run_folder(with_selection):
    return with_selection


@pytest.fixture(scope="module")
def result(run_folder):
    return personalize(run_folder)


def test_figures_of_every_client_and_their_mean_are_in_the_file(run_folder, result):
    assert json.loads((run_folder / "personal_eval.json").read_text()) == result
    for values in result["clients"].values():
        assert sum(values["weights"].values()) == pytest.approx(1.0)
        assert list(values["weights"]) == [level for level in result["levels"] if level in values["weights"]]
        assert values["chosen"] in values["weights"]
    for kind in ("own", "level", "mixture", "adapter"):
        assert result["mean"][kind] == pytest.approx(np.mean([v[kind] for v in result["clients"].values()]))
    hurt = [v["mixture"] - v["own"] > 0.02 for v in result["clients"].values()]
    assert result["hurt"] == pytest.approx(np.mean(hurt))


def test_own_loss_is_that_of_local_training_on_the_same_records(run_folder, fit, result, tmp_path):
    """A run with share: none is the reference; it evaluates every client's adapter after its last fit."""
    local = fit(
        tmp_path,
        "--rounds",
        "2",
        *SELECTION,
        "--federation.share",
        "none",
        "--no-dept-clustering",
        "--num-clusters",
        "1",
    )
    figures = json.loads((local / "client_eval_all_rounds.json").read_text())["rounds"]["2"]
    for client_id, values in result["clients"].items():
        department, client = client_id.split("/")
        assert values["own"] == pytest.approx(figures[department][client]["loss"], rel=1e-5)
    trained = client_adapters(run_folder / "personal" / "own" / "version_0")
    for client_id, (_, folder) in client_adapters(local).items():
        expected, got = (load_file(f / "adapter_model.safetensors") for f in (folder, trained[client_id][1]))
        assert all(bool((expected[name] == got[name]).all()) for name in expected)


def test_one_adapter_of_a_client_gives_peft_the_loss_in_the_table(run_folder, result, tokenizer):
    from peft import PeftModel
    from torch.nn.functional import cross_entropy

    from fl_lightning import load_base_model

    config = load_run_config(run_folder)
    base, _ = load_base_model(config.model, dtype=torch.float32)
    client = build_components(config).data["hr/client_0"]
    model = PeftModel.from_pretrained(base, str(run_folder / "personal/adapters/hr/client_0")).eval()
    loss = count = 0
    for example in client.eval:
        places = example.supervised.nonzero().squeeze(1)
        with torch.no_grad():
            logits = model(input_ids=example.ids[None]).logits[0, places - 1]
        loss, count = loss + float(cross_entropy(logits, example.ids[places], reduction="sum")), count + len(places)
    assert result["clients"]["hr/client_0"]["adapter"] == pytest.approx(loss / count, rel=1e-5)


def test_adapters_of_the_levels_give_peft_the_loss_of_the_mixture_in_the_table(run_folder, result):
    """Each level's folder on the base by PEFT, one after another; their probabilities mixed by hand."""
    from peft import PeftModel

    from fl_lightning import load_base_model

    config = load_run_config(run_folder)
    values = result["clients"]["hr/client_0"]
    client = build_components(config).data["hr/client_0"]
    probs = {}
    for level, weight in values["weights"].items():
        model, _ = load_base_model(config.model, dtype=torch.float32)
        if level != "base":
            model = PeftModel.from_pretrained(model, str(run_folder / values["adapters"][level]))
        for number, example in enumerate(client.eval):
            places = example.supervised.nonzero().squeeze(1)
            with torch.no_grad():
                logits = model.eval()(input_ids=example.ids[None]).logits[0, places - 1].double()
            chosen = logits.softmax(-1).gather(1, example.ids[places, None]).squeeze(1)
            probs[number] = probs.get(number, 0) + weight * chosen
    assert values["adapters"].keys() == values["weights"].keys() - {"base"}
    assert min(values["weights"][level] for level in ("own", "department", "root")) > 0
    losses = -torch.cat(list(probs.values())).log()
    assert values["mixture"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_each_level_adapter_is_written_once(run_folder, result):
    written = {path.parent for path in run_folder.glob("personal/levels/**/adapter_model.safetensors")}
    named = {run_folder / folder for values in result["clients"].values() for folder in values["adapters"].values()}
    assert written == named
    departments = {client_id.split("/")[0] for client_id in result["clients"]}
    clusters = {
        values["adapters"]["cluster"] for values in result["clients"].values() if "cluster" in values["weights"]
    }
    assert len(written) == len(result["clients"]) + len(departments) + len(clusters) + 1


def test_a_second_call_trains_nothing_again_and_says_the_same(run_folder, result, capsys):
    times = {path: path.stat().st_mtime_ns for path in run_folder.glob("personal/*/version_0/**/*.safetensors")}
    assert main(["personalize", "--run", str(run_folder)]) == 0
    assert "clients lose more than 0.02 by their mixture" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.loads((run_folder / "personal_eval.json").read_text()) == result


def delta_weights(folder):
    """{name: what an adapter adds to the weight}, as PEFT has it."""
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS)
    scaling = config["lora_alpha"] / config["r"]
    return {n: scaling * tensors[n.replace("lora_A", "lora_B")] @ a for n, a in tensors.items() if "lora_A" in n}


@pytest.fixture(scope="module")
def averaged(run_folder, result, tmp_path_factory):
    """The run with the mean of the departments as its root, and two own adapters of each client."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("averaged") / "version_0")
    config = folder / "config.yaml"
    text = config.read_text().replace("root: trained\n", "root: mean\n")
    config.write_text(text.replace("own_adapters: 1\n", "own_adapters: 2\n"))
    shutil.rmtree(folder / "personal/root")
    return folder, personalize(folder)


def test_the_mean_of_the_departments_is_a_root_that_nobody_trains(averaged, result):
    folder, averaged = averaged
    assert not (folder / "personal/root").exists()
    departments = [delta_weights(path) for path in folder.glob("adapters/*")]
    assert len(departments) == 4
    root = delta_weights(folder / averaged["clients"]["hr/client_0"]["adapters"]["root"])
    for name, delta in root.items():
        torch.testing.assert_close(delta, sum(d[name] for d in departments) / 4, rtol=1e-4, atol=1e-6, msg=name)
    for client_id, values in averaged["clients"].items():
        assert values["own"] == pytest.approx(result["clients"][client_id]["own"], rel=1e-6)  # beside other levels
        assert "root" in values["weights"]


def test_a_second_own_adapter_is_another_one_and_has_a_part_of_the_weight_of_own(averaged):
    folder, result = averaged
    mixtures = client_mixtures(folder)
    for client_id, values in result["clients"].items():
        names = ("own", "own 2")
        assert list(values["adapters"])[:2] == list(values["own_adapters"]) == list(names)
        assert sum(values["own_adapters"].values()) == pytest.approx(values["weights"]["own"])
        assert "own 2" not in values["weights"]
        assert sum(values["weights"].values()) == pytest.approx(1.0)
        folders = [folder / values["adapters"][name] for name in names]
        first, second = (load_file(path / WEIGHTS) for path in folders)
        assert all(not torch.allclose(first[name], second[name]) for name in first)
        trained = client_adapters(folder / "personal/own_2/version_0")[client_id][1]
        assert all(bool((load_file(trained / WEIGHTS)[name] == second[name]).all()) for name in second)
        served = dict(zip(mixtures[f"{client_id}+"].folders, mixtures[f"{client_id}+"].weights, strict=True))
        for path, name in zip(folders, names, strict=True):
            weight = values["own_adapters"][name]
            assert served.get(path, 0.0) == pytest.approx(weight if weight >= 0.005 else 0.0, rel=0.05)
    console = Console(width=400, file=io.StringIO())
    show(result, console)
    assert re.search(r"own \d+% \(own", console.file.getvalue())


def test_levels_that_are_trained_on_all_records_keep_the_choice_made_before(run_folder, result, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "version_0")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("refit: false\n", "refit: true\n"))
    refitted = personalize(folder)
    for client_id, values in refitted["clients"].items():
        before = result["clients"][client_id]
        assert (values["weights"], values["chosen"]) == (before["weights"], before["chosen"])
        assert values["own"] != before["own"]
        department = values["adapters"]["department"]
        assert department == before["adapters"]["department"]
        trained = folder / "personal/refit_department/version_0/adapters" / client_id.split("/")[0]
        expected, got = (load_file(f / "adapter_model.safetensors") for f in (trained, folder / department))
        assert all(bool((expected[name] == got[name]).all()) for name in expected)
    for chain in ("own", "department", "root"):
        losses = folder / "personal" / f"refit_{chain}" / "version_0" / "client_runs"
        steps = [len(path.read_text().splitlines()) - 1 for path in losses.glob("*/*/round_1.csv")]
        assert set(steps) == {4}  # 8 records instead of 6, two at a time


@pytest.mark.slow
def test_under_early_stopping_levels_are_of_their_best_rounds_and_a_refit_takes_the_same_rounds(fit, root, tmp_path):
    for department in ("finance", "hr"):
        shutil.copytree(root / department, tmp_path / "data" / department)
    options = [*SELECTION, "--learning-rate", "4e-2", "--training.early_stopping", "true", "--personal.refit", "true"]
    options += ["--personal.levels", "[own, department]", "--personal.own_adapters", "2"]
    folder = fit(tmp_path, "--rounds", "3", "--data", str(tmp_path / "data"), *options)
    result = personalize(folder)
    for chain in ("own_2", "own"):
        best = json.loads((folder / "personal" / chain / "version_0" / "early_stopping.json").read_text())
        assert min(values["round"] for client, values in best.items() if "/" in client) < 3
        refitted = folder / "personal" / f"refit_{chain}" / "version_0"
        again = json.loads((refitted / "early_stopping.json").read_text())
        for client_id in result["clients"]:
            assert again[client_id] == {"round": best[client_id]["round"], "loss": None}
    for client_id, values in result["clients"].items():
        department, client = client_id.split("/")
        rounds = json.loads((refitted / "client_eval_all_rounds.json").read_text())["rounds"]
        loss = rounds[str(best[client_id]["round"])][department][client]["loss"]
        assert values["own"] == pytest.approx(loss, rel=1e-4)
    of_run = json.loads((folder / "early_stopping.json").read_text())
    refitted = json.loads((folder / "personal/refit_department/version_0/early_stopping.json").read_text())
    assert {d: v["round"] for d, v in of_run.items()} == {d: v["round"] for d, v in refitted.items()}


def test_distilled_adapters_have_the_rank_of_own_ones_and_are_the_same_in_a_second_call(run_folder, result, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "version_0")
    config = folder / "config.yaml"
    text = config.read_text().replace("adapter: average\n", "adapter: distill\n")
    config.write_text(text.replace("distill_epochs: 4\n", "distill_epochs: 1\n"))
    first = personalize(folder)
    distilled = [c for c, values in first["clients"].items() if values["adapter_is"] == "distillation"]
    adapters = {c: load_file(folder / "personal/adapters" / c / "adapter_model.safetensors") for c in distilled}
    own = load_file(folder / "personal/levels/own/hr/client_0/adapter_model.safetensors")
    assert distilled
    for client_id in distilled:
        assert {n: t.shape for n, t in adapters[client_id].items()} == {n: t.shape for n, t in own.items()}
        before = result["clients"][client_id]
        assert (first["clients"][client_id]["weights"], first["clients"][client_id]["mixture"]) == (
            before["weights"],
            before["mixture"],
        )
        assert first["clients"][client_id]["adapter"] != before["adapter"]
    assert personalize(folder) == first
    for client_id, adapter in adapters.items():
        again = load_file(folder / "personal/adapters" / client_id / "adapter_model.safetensors")
        assert all(bool((again[name] == adapter[name]).all()) for name in adapter)


def test_a_run_without_selection_records_is_refused(finished):
    with pytest.raises(InputError, match="expected a run with selection records.*start one with"):
        personalize(finished)


def test_a_run_of_other_rates_or_records_than_it_was_trained_with_is_refused(run_folder, result, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "version_0")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.005\n", "learning_rate: 0.05\n"))
    with pytest.raises(
        InputError, match="training.learning_rate: expected 0.005, with which the run started, got 0.05"
    ):
        personalize(folder)


def test_own_adapters_of_another_seed_are_refused(run_folder, result):
    config = load_run_config(run_folder)
    components = build_components(config)
    clients = LocalClients(components.fabric, components.module, components.data, config.training)
    with pytest.raises(InputError, match="seed: expected .*, with which the run started, got 99"):
        train_chain("own", run_folder, replace(config, seed=99), components, clients)


def test_an_unfinished_run_is_refused(fit, tmp_path):
    folder = fit(tmp_path, "--rounds", "1", *SELECTION)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 1\n", "rounds: 3\n"))
    with pytest.raises(InputError, match="expected a finished run, got 1 of 3 rounds"):
        personalize(folder)


def test_clients_of_one_name_stay_apart_in_one_department():
    data = {f"{d}/client_0": ClientData(d, "client_0", [], []) for d in ("hr", "it")}
    assert list(as_one_department(data)) == ["root/hr.client_0", "root/it.client_0"]
