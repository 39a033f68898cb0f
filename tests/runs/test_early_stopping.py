"""Runs under `training.early_stopping`, against runs that end in the round that it takes."""

import pytest
import torch
from run_files import adapters, metrics, read
from shared_folder import make_once
from torch.nn.functional import cross_entropy

from fl_lightning import load_base_model
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.storage.run_adapters import client_adapters

pytestmark = pytest.mark.xdist_group("early_stopping")

# A rate that is too high, so that the losses soon rise again.
OPTIONS = ["--data.selection_fraction", "0.25", "--learning-rate", "0.15", "--batch-size", "2"]
OPTIONS += ["--federation.combiner", "fedavg", "--no-dept-clustering", "--num-clusters", "1"]
STOP = ["--training.early_stopping", "true"]
ALONE = ["--federation.share", "none"]


@pytest.fixture(scope="module")
def stopped(fit, tmp_path_factory):
    """Three rounds of departments."""
    return make_once(tmp_path_factory, "stopped", lambda f: fit(f, "--rounds", "3", *OPTIONS, *STOP)) / "version_0"


@pytest.fixture(scope="module")
def alone(fit, tmp_path_factory):
    """Three rounds of clients that share nothing, with the exports of the last round and of the best ones."""
    options = ["--rounds", "3", *OPTIONS, *STOP, *ALONE, "--retention.client_exports", "1"]
    return make_once(tmp_path_factory, "stopped_alone", lambda folder: fit(folder, *options)) / "version_0"


def selection_loss(run_folder, client_ids, adapter):
    """Mean loss over the target tokens of the clients' selection records, as PEFT and torch have it."""
    from peft import PeftModel

    config = load_run_config(run_folder)
    base, _ = load_base_model(config.model, dtype=torch.float32)
    data = build_components(config).data
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    loss = count = 0
    for example in (example for client_id in client_ids for example in data[client_id].selection):
        places = example.supervised.nonzero().squeeze(1)
        with torch.no_grad():
            logits = model(input_ids=example.ids[None]).logits[0, places - 1]
        loss, count = loss + float(cross_entropy(logits, example.ids[places], reduction="sum")), count + len(places)
    return loss / count


def test_adapters_and_evaluation_are_those_of_a_run_that_ends_in_the_best_round(fit, stopped, tmp_path):
    best = read(stopped, "early_stopping.json")
    assert {1, 2} & {values["round"] for values in best.values()}  # else stopping would change nothing
    losses = {step: row for step, row in metrics(stopped).items() if step}
    for department in read(stopped, "dept_lora_federated.json"):
        by_round = {step: float(row[f"{department}/selection/loss"]) for step, row in losses.items()}
        assert best[department]["round"] == min(by_round, key=by_round.get)
    for rounds in (1, 2, 3):
        plain = fit(tmp_path / str(rounds), "--rounds", str(rounds), *OPTIONS)
        for department in (name for name, values in best.items() if values["round"] == rounds):
            file = f"adapters/{department}/adapter_model.safetensors"
            assert (stopped / file).read_bytes() == (plain / file).read_bytes()
            final = [read(run, "federated_eval.json")["departments"][department]["final"] for run in (stopped, plain)]
            assert final[0] == final[1]
    assert metrics(stopped)[3]["eval/loss"] == metrics(plain)[3]["eval/loss"]  # curves are of the rounds themselves
    assert not (plain / "early_stopping.json").exists()


def test_the_loss_of_the_best_round_is_what_peft_says_of_the_exported_adapter(stopped, alone):
    loss = selection_loss(stopped, ["hr/client_0", "hr/client_1"], stopped / "adapters" / "hr")
    assert read(stopped, "early_stopping.json")["hr"]["loss"] == pytest.approx(loss, rel=1e-5)
    best = read(alone, "early_stopping.json")
    for client_id in ("hr/client_0", "finance/client_1"):
        round_num, folder = client_adapters(alone)[client_id]
        assert round_num == best[client_id]["round"]
        assert best[client_id]["loss"] == pytest.approx(selection_loss(alone, [client_id], folder), rel=1e-5)


def test_clients_that_share_nothing_keep_the_export_of_their_best_round(alone):
    best = read(alone, "early_stopping.json")
    clients = {name: values["round"] for name, values in best.items() if "/" in name}
    assert min(clients.values()) < 3
    kept = {(n, f"{d}/{c}") for n, ds in read(alone, "client_lora_federated.json")["rounds"].items() for d in ds
            for c in ds[d]}  # fmt: skip
    assert kept == {(str(n), c) for c, n in clients.items()} | {("3", c) for c in clients}
    folders = {path.name for path in alone.glob("client_exports/*/round_*")}
    assert folders == {f"round_{n}_{c.split('/')[1]}" for n, c in kept}


@pytest.mark.slow
@pytest.mark.parametrize(("share", "done"), [("all", 1), ("none", 2)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(fit, stopped, alone, tmp_path, share, done):
    straight, options = (stopped, []) if share == "all" else (alone, [*ALONE, "--retention.client_exports", "1"])
    first = fit(tmp_path, "--rounds", str(done), *OPTIONS, *STOP, *options)
    resumed = fit(tmp_path, "--rounds", "3", *OPTIONS, *STOP, *options, resume=first)
    assert adapters(resumed) == adapters(straight)
    assert metrics(resumed) == metrics(straight)
    for name in ("early_stopping", "federated_eval", "client_eval_all_rounds", "client_lora_federated"):
        assert read(resumed, f"{name}.json") == read(straight, f"{name}.json")
    best = [sorted((run / "checkpoints/round_3/best").rglob("*.safetensors")) for run in (resumed, straight)]
    assert len(best[0]) == len(best[1]) > 0
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*best, strict=True))
