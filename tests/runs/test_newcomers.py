"""Newcomers of a small run: clients of its departments and of a new one, who choose without training."""

import json
import shutil

import numpy as np
import pytest
import torch
from shared_folder import make_once
from torch.nn.functional import cross_entropy

from fl_lightning import InputError, load_base_model
from fl_lightning.cli import main
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.newcomers import personalize_newcomers

pytestmark = pytest.mark.xdist_group("newcomers")


@pytest.fixture(scope="module")
def run_folder(fit, tmp_path_factory):
    """A run without selection records, which newcomers do not need."""
    options = ["--rounds", "2", "--federation.combiner", "fedavg", "--batch-size", "2"]
    return make_once(tmp_path_factory, "newcomers_run", lambda folder: fit(folder, *options)) / "version_0"


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    """finance/late, who has records of finance, and desk/new of a new department, with records of engineering."""
    folder = tmp_path_factory.mktemp("newcomers")
    for name, source in (("finance/late", "finance"), ("desk/new", "engineering")):
        shutil.copytree(next(root.glob(f"{source}*/client_1")), folder / name)
    return folder


@pytest.fixture(scope="module")
def result(run_folder, data):
    return personalize_newcomers(run_folder, data)


def test_a_newcomer_chooses_between_the_levels_of_its_department_or_of_every_department(run_folder, result):
    assert json.loads((run_folder / "newcomers.json").read_text()) == result
    late, new = result["clients"]["finance/late"], result["clients"]["desk/new"]
    assert {"root", "department", "base"} <= late["weights"].keys() <= {"root", "department", "cluster", "base"}
    departments = {f"department {name}" for name in ("customer_support", "engineering", "finance", "hr")}
    assert new["weights"].keys() == {"root", "base"} | departments
    for values in (late, new):
        assert sum(values["weights"].values()) == pytest.approx(1.0)
        assert values["level"] == pytest.approx(values["by_level"][values["chosen"]])
        assert values["base"] == values["by_level"]["base"]
    assert result["mean"]["mixture"] == pytest.approx(np.mean([late["mixture"], new["mixture"]]))
    assert [path.name for path in (run_folder / "personal").iterdir()] == ["newcomers"]  # nothing is trained


def loss_of(run_folder, adapter, records, tokenizer):
    """Mean loss over the target tokens of records, as PEFT and torch have it."""
    from peft import PeftModel

    from fl_lightning.data.record_files import read_records
    from fl_lightning.data.tokenization import encode

    base, _ = load_base_model(load_run_config(run_folder).model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    loss = count = 0
    for example in encode(read_records(records), tokenizer, 512, str(records)):
        places = example.supervised.nonzero().squeeze(1)
        with torch.no_grad():
            logits = model(input_ids=example.ids[None]).logits[0, places - 1]
        loss, count = loss + float(cross_entropy(logits, example.ids[places], reduction="sum")), count + len(places)
    return loss / count


def test_losses_are_what_peft_says_of_the_newcomers_held_out_records(run_folder, data, result, tokenizer):
    values = result["clients"]["finance/late"]
    held_out = data / "finance/late/eval.jsonl"
    one = loss_of(run_folder, run_folder / "personal/newcomers/finance/late", held_out, tokenizer)
    assert values["adapter"] == pytest.approx(one, rel=1e-5)
    department = loss_of(run_folder, run_folder / "adapters/finance", held_out, tokenizer)
    assert values["by_level"]["department"] == pytest.approx(department, rel=1e-5)


def test_held_out_records_choose_nothing(run_folder, data, result, tmp_path):
    other = shutil.copytree(data, tmp_path / "data")
    records = (other / "finance/late/train.jsonl").read_text().splitlines()
    (other / "finance/late/eval.jsonl").write_text("\n".join(records[:2]) + "\n")
    again = personalize_newcomers(run_folder, other)["clients"]["finance/late"]
    assert again["weights"] == result["clients"]["finance/late"]["weights"]
    assert again["mixture"] != result["clients"]["finance/late"]["mixture"]


def test_the_command_prints_a_line_for_each_newcomer(run_folder, data, result, capsys):
    assert main(["personalize", "--run", str(run_folder), "--data", str(data)]) == 0
    text = capsys.readouterr().out
    assert "held-out loss of what each newcomer can take" in text
    assert "finance/late" in text
    assert "desk/new" in text


def test_a_client_of_the_run_is_no_newcomer(run_folder, root):
    with pytest.raises(InputError, match=r"expected clients that were not in the run, got customer_support/client_0"):
        personalize_newcomers(run_folder, root)
