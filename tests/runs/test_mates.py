"""`personalize` with lent own adapters: what is chosen, written and served, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from shared_folder import make_once
from torch.nn.functional import cross_entropy

from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.personalization.choice import OWN_TOKENS
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.runs.newcomers import personalize_newcomers
from fl_lightning.runs.personalize import personalize, show
from fl_lightning.storage.personal_models import client_mixtures

pytestmark = pytest.mark.xdist_group("mates")

CLIENT, MATE = "hr/client_0", "hr/client_1"
OPTIONS = ["--rounds", "1", "--learning-rate", "5e-2", "--batch-size", "2", "--data.selection_fraction", "0.25"]
OPTIONS += ["--federation.combiner", "fedavg", "--personal.levels", "[own, department, base]"]
OPTIONS += ["--personal.own", "during", "--personal.mates", "department"]


@pytest.fixture(scope="module")
def run_folder(fit, tmp_path_factory):
    """A run with own adapters of eight clients, personalized with the mates of each department."""
    folder = make_once(tmp_path_factory, "mates_run", lambda output: personalize(fit(output, *OPTIONS)))
    return folder / "version_0"


@pytest.fixture(scope="module")
def result(run_folder):
    return json.loads((run_folder / "personal_eval.json").read_text())


@pytest.fixture(scope="module")
def plain_losses(run_folder, result):
    """Function: losses of the target tokens of records under a client's components, each on PEFT alone."""
    from peft import PeftModel

    from fl_lightning import load_base_model

    config = load_run_config(run_folder)

    def losses(client_id, records):
        columns = []
        for folder in (*result["clients"][client_id]["adapters"].values(), None):
            model, _ = load_base_model(config.model, dtype=torch.float32)
            if folder is not None:
                model = PeftModel.from_pretrained(model, str(run_folder / folder))
            column = []
            for example in records:
                places = example.supervised.nonzero().squeeze(1)
                with torch.no_grad():
                    logits = model.eval()(input_ids=example.ids[None]).logits[0, places - 1]
                column += cross_entropy(logits, example.ids[places], reduction="none").tolist()
            columns.append(column)
        return np.array(columns).T

    return losses


def em(losses, prior):
    weights = np.full(losses.shape[1], 1 / losses.shape[1])
    for _ in range(10_000):
        joint = weights * np.exp(-losses)
        weights = (joint / joint.sum(1, keepdims=True)).sum(0) + prior
        weights /= weights.sum()
    return weights


def test_weights_and_loss_are_those_of_em_by_hand_on_losses_of_plain_peft(run_folder, result, plain_losses):
    """Components are own, department, mate and base in that order; a department of two has one mate each."""
    data = build_components(load_run_config(run_folder)).data
    selection = {c: plain_losses(c, data[c].selection) for c in (CLIENT, MATE)}
    together = em(np.concatenate(list(selection.values())), np.array([OWN_TOKENS, 0, 0, 0]))
    weights = em(selection[CLIENT], 20 * together)
    values = result["clients"][CLIENT]
    assert list(values["adapters"]) == ["own", "department", f"mates {MATE}"]
    got = [values["weights"][level] for level in ("own", "department", "mates", "base")]
    assert got == pytest.approx(weights.tolist(), abs=1e-3)
    held_out = plain_losses(CLIENT, data[CLIENT].eval)
    assert values["mixture"] == pytest.approx(float(-np.log(np.exp(-held_out) @ weights).mean()), abs=1e-3)


def test_the_weight_of_mates_is_written_as_a_sum_and_singly_and_printed(result, capsys):
    assert result["levels"] == ["own", "department", "base", "mates"]
    for client_id, values in result["clients"].items():
        department, client = client_id.split("/")
        mate = f"{department}/client_{1 - int(client[-1])}"
        assert values["mates"] == {mate: pytest.approx(values["weights"]["mates"])}
        assert sum(values["weights"].values()) == pytest.approx(1.0)
        assert values["adapters"][f"mates {mate}"] == f"personal/levels/own/{mate}"
    show(result)
    assert "mates " in capsys.readouterr().out


def test_a_served_mixture_has_the_mate_as_one_of_its_adapters(run_folder, result):
    values = result["clients"][CLIENT]
    source = client_mixtures(run_folder)[f"{CLIENT}+"]
    served = dict(zip(source.folders, source.weights, strict=True))
    assert served[run_folder / f"personal/levels/own/{MATE}"] == pytest.approx(values["weights"]["mates"], rel=0.05)


def test_newcomers_take_own_adapters_of_their_department_or_with_all_of_everybody(run_folder, root, tmp_path):
    data, folder = tmp_path / "data", shutil.copytree(run_folder, tmp_path / "version_0")
    for name in ("finance/late", "desk/new"):
        shutil.copytree(next(root.glob("finance*/client_1")), data / name)
    clients = personalize_newcomers(folder, data)["clients"]
    assert clients["finance/late"]["mates"].keys() == {"finance/client_0", "finance/client_1"}
    assert "mates" not in clients["desk/new"]["weights"]
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("mates: department", "mates: all"))
    new = personalize_newcomers(folder, data)["clients"]["desk/new"]
    assert len(new["mates"]) == 8
    assert new["weights"]["mates"] == pytest.approx(sum(new["mates"].values()))


def test_mates_are_refused_where_own_adapters_must_not_leave_their_clients():
    with pytest.raises(InputError, match="personal.mates: expected off, or personal.own: after or during"):
        parse_config(["--personal.mates", "all", "--personal.own", "off"])
    private = ["--federation.guard.name", "dp", "--personal.mates", "all", "--num-clusters", "1"]
    private += ["--federation.weighting", "uniform"]
    with pytest.raises(InputError, match="personal.mates: guard.name: dp adds noise to what leaves clients"):
        parse_config(private)
