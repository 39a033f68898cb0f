"""``dept_clusters.mix: predictions``: departments' weights and losses against PEFT, and runs that go on."""

import json
import logging
import shutil

import pytest
import torch
from run_files import adapters, metrics, read
from torch.nn.functional import cross_entropy

from fl_lightning import load_base_model
from fl_lightning.cli import main
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.runs.fit import fit as fit_config

pytestmark = pytest.mark.xdist_group("personalize")

PRIOR = 2.0


@pytest.fixture(scope="module")
def peft_losses(with_selection):
    """Function: losses of hr's target tokens, shape (tokens, levels), with levels that PEFT makes of departments."""
    from peft import PeftModel

    clusters = newest_checkpoint(with_selection)[0].cluster_assignments
    base, _ = load_base_model(load_run_config(with_selection).model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(with_selection / "adapters/hr"), adapter_name="hr")
    for name in clusters.keys() - {"hr"}:
        model.load_adapter(str(with_selection / "adapters" / name), name)
    members = {"root": list(clusters), "cluster": [n for n in clusters if clusters[n] == clusters["hr"]]}
    for level, names in members.items():
        model.add_weighted_adapter(names, [1 / len(names)] * len(names), level, combination_type="cat")
    model.eval()  # also what was just added, which begins in training mode
    data = build_components(load_run_config(with_selection)).data

    def losses(levels, split):
        columns = []
        for level in levels:
            model.set_adapter("hr" if level == "department" else level)
            columns.append([])
            for example in (e for c in ("hr/client_0", "hr/client_1") for e in getattr(data[c], split)):
                places = example.supervised.nonzero().squeeze(1)
                with torch.no_grad():
                    logits = model(input_ids=example.ids[None]).logits[0, places - 1].double()
                columns[-1].append(cross_entropy(logits, example.ids[places], reduction="none"))
        return torch.stack([torch.cat(column) for column in columns], dim=1)

    return losses


def test_weights_are_those_of_em_on_what_peft_says_of_the_selection_records(with_selection, peft_losses):
    hr = read(with_selection, "department_mixtures.json")["departments"]["hr"]
    probs = torch.exp(-peft_losses(hr["weights"], "selection"))
    weights = torch.full((probs.shape[1],), 1 / probs.shape[1], dtype=torch.float64)
    for _ in range(5_000):
        shares = probs * weights / (probs * weights).sum(1, keepdim=True)
        counts = shares.sum(0) + PRIOR * torch.eye(probs.shape[1], dtype=torch.float64)[0]
        weights = counts / counts.sum()
    assert list(hr["weights"].values()) == pytest.approx(weights.tolist(), abs=1e-4)
    assert newest_checkpoint(with_selection)[0].mixtures["hr"] == hr["weights"]


def test_held_out_losses_are_those_of_peft_and_its_probabilities_mixed_by_hand(with_selection, peft_losses):
    hr = read(with_selection, "department_mixtures.json")["departments"]["hr"]
    losses = peft_losses(hr["weights"], "eval")
    weights = torch.tensor(list(hr["weights"].values()), dtype=torch.float64)
    expected = [*losses.mean(0).tolist(), float(-(torch.exp(-losses) @ weights).log().mean())]
    assert list(hr["losses"]) == [*hr["weights"], "mixture"]
    assert list(hr["losses"].values()) == pytest.approx(expected, rel=1e-5)
    loss = read(with_selection, "federated_eval.json")["departments"]["hr"]["final"]["loss"]
    assert hr["losses"]["department"] == pytest.approx(loss, rel=1e-5)


def test_weights_and_losses_of_every_round_are_logged(with_selection):
    rows, last = metrics(with_selection), read(with_selection, "department_mixtures.json")
    for round_num in (1, 2):
        values = read(with_selection, f"cluster_metadata/round_{round_num}_mixtures.json")
        assert values["round"] == round_num
        for department, weights in values["weights"].items():
            assert sum(weights.values()) == pytest.approx(1.0)
            logged = {level: float(rows[round_num][f"{department}/mixture/{level}"]) for level in weights}
            assert logged == pytest.approx(weights)
    for department, values in last["departments"].items():
        for level, loss in values["losses"].items():
            assert float(rows[2][f"{department}/eval/{level}_loss"]) == pytest.approx(loss)
        for level, folder in values["adapters"].items():
            assert (with_selection / folder / "adapter_model.safetensors").is_file(), level
    assert float(rows[2]["eval/mixture_loss"]) == pytest.approx(last["mean"]["mixture"])
    named = {path for values in last["departments"].values() for path in values["adapters"].values()}
    left = {path.relative_to(with_selection).as_posix() for path in with_selection.glob("mixture_levels/*")}
    assert left == {path for path in named if path.startswith("mixture_levels")}


def test_a_run_that_goes_on_after_its_first_round_ends_with_the_same_bytes(with_selection, tmp_path, caplog):
    folder = shutil.copytree(with_selection, tmp_path / "version_0")
    shutil.rmtree(folder / "checkpoints/round_2")
    shutil.rmtree(folder / "mixture_levels")
    (folder / "department_mixtures.json").unlink()
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        fit_config(load_run_config(folder), resume=folder)
    weights = read(with_selection, "department_mixtures.json")["departments"]["hr"]["weights"]
    assert f"round 2: hr mixes department {100 * weights['department']:.0f} %" in caplog.text
    assert adapters(folder) == adapters(with_selection)
    assert metrics(folder) == metrics(with_selection)
    assert newest_checkpoint(folder)[0].mixtures == newest_checkpoint(with_selection)[0].mixtures
    files = sorted(path.relative_to(with_selection) for path in with_selection.rglob("*") if path.is_file())
    same = (
        "checkpoints/round_2/state.safetensors",
        "mixture_levels",
        "department_mixtures",
        "cluster_metadata",
        "federated_eval",
    )
    compared = [path for path in files if path.as_posix().startswith(same)]
    assert len(compared) > 11
    for path in compared:
        assert (folder / path).read_bytes() == (with_selection / path).read_bytes(), path


def test_evaluate_writes_the_same_losses_again(with_selection, tmp_path, capsys):
    folder = shutil.copytree(with_selection, tmp_path / "version_0")
    value = read(folder, "department_mixtures.json")
    changed = {name: {**values, "losses": {}} for name, values in value["departments"].items()}
    (folder / "department_mixtures.json").write_text(json.dumps({**value, "departments": changed, "mean": {}}))
    assert main(["evaluate", "--run", str(folder)]) == 0
    printed, again = capsys.readouterr().out, read(folder, "department_mixtures.json")
    assert again["mean"] == pytest.approx(value["mean"], rel=1e-6)
    for name, values in value["departments"].items():
        assert again["departments"][name]["losses"] == pytest.approx(values["losses"], rel=1e-6)
        assert f"{name} mixes department" in printed
