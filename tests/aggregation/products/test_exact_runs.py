"""Whole runs whose departments keep products, and the pool of all records: on a micro base, as a user starts them."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fl_lightning import load_base_model
from fl_lightning.config.parsing import parse_config
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.evaluate import evaluate
from fl_lightning.runs.fit import fit as fit_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exact_runs")]

DEPARTMENTS = ["customer_support", "engineering", "finance", "hr"]
PLAIN = ["--num-clusters", "1", "--no-dept-clustering", "--learning-rate", "5e-3", "--device-map", "cpu"]
MIXED = ["--lora.profiles={hr: {r: 4}, hr/client_1: {r: 16, lora_alpha: 8}, finance/client_0: {r: 2}}"]
ARGUMENTS = {
    "stack": ["--federation.combiner=stack", *MIXED],
    "svd": ["--federation.combiner=svd", *MIXED],
    "residual": ["--federation.combiner=residual"],
    "central": ["--federation.share=central", "--federation.combiner=fedavg"],
}


@pytest.fixture(scope="module")
def fit(cut_departments, micro_base, tmp_path_factory):
    root = cut_departments(tmp_path_factory.mktemp("departments"), 3, 6, 3)

    def run_it(name, output, *arguments, resume=None):
        small = ["--clients-per-dept", "3", "--logging.samples", "0", "--model.name_or_path", micro_base]
        small += ["--data", str(root), "--output", str(output)]
        return fit_config(parse_config([*PLAIN, *ARGUMENTS[name], *small, *arguments]), resume=resume)

    return run_it


@pytest.fixture(scope="module")
def finished(fit, tmp_path_factory):
    """{name: run of two rounds}, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = fit(name, tmp_path_factory.mktemp(name), "--rounds", "2")
        return made[name]

    return get


def read(folder, name):
    return json.loads((folder / name).read_text())


def files(folder):
    found = sorted(folder.glob("adapters/*/*")) + sorted(folder.glob("client_exports/*/*/*"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def dense(folder):
    """The adapter's ΔW by layer, its own r and lora_alpha taken from its config."""
    config, state = read(folder, "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    layers = {name.split(".lora_")[0] for name in state}
    return {
        k: scale * state[f"{k}.lora_B.weight"].double() @ state[f"{k}.lora_A.weight"].double() for k in sorted(layers)
    }


@pytest.mark.parametrize("name", ["stack", "svd", "residual"])
@pytest.mark.parametrize("round_num", [1, 2])
def test_a_departments_adapter_is_the_mean_of_its_clients_adapters(finished, name, round_num):
    folder = finished(name)
    weights = read(folder, f"cluster_metadata/round_{round_num}_aggregation.json")["departments"]
    assert all(0 <= own["aggregation_error"] <= 1e-5 for own in weights.values())
    if round_num == 1:
        return  # department adapters are those of the last round
    for department in DEPARTMENTS:
        mean = {}
        for client, weight in weights[department]["weights"].items():
            for layer, matrix in dense(folder / f"client_exports/{department}/round_2_{client}").items():
                mean[layer] = mean.get(layer, 0) + weight * matrix
        for layer, matrix in dense(folder / "adapters" / department).items():
            assert (matrix - mean[layer]).norm() <= 1e-5 * mean[layer].norm()


@pytest.mark.parametrize("name", ["stack", "svd"])
def test_exported_adapters_give_peft_the_logits_that_the_run_evaluated(finished, name):
    folder = finished(name)
    base, _ = load_base_model(load_run_config(folder).model, dtype=torch.float32)
    clean = base(torch.arange(5, 25)[None]).logits
    model = PeftModel.from_pretrained(base, str(folder / "adapters" / "hr")).eval()
    changed = model(torch.arange(5, 25)[None]).logits
    assert not torch.allclose(changed, clean, atol=1e-3)
    before = read(folder, "federated_eval.json")
    assert evaluate(folder) == before


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_resumed_run_ends_byte_identical(fit, finished, tmp_path, name):
    first = fit(name, tmp_path, "--rounds", "1")
    resumed = fit(name, tmp_path, "--rounds", "2", resume=first)
    assert files(resumed) == files(finished(name))
    assert read(resumed, "federated_eval.json") == read(finished(name), "federated_eval.json")


@pytest.mark.parametrize("name", ["stack", "svd"])
def test_a_sample_of_the_clients_goes_on_from_what_all_know(fit, tmp_path, name):
    folder = fit(name, tmp_path, "--rounds", "3", "--federation.clients_per_round", "1")
    for round_num in (1, 2, 3):
        own = read(folder, f"cluster_metadata/round_{round_num}_aggregation.json")["departments"]["hr"]
        assert len(own["weights"]) == 1
        assert own["aggregation_error"] <= 1e-5
        assert own["moved"] > 0


def test_rank_errors_of_mixed_ranks_are_reported_and_logged(finished):
    folder = finished("svd")
    errors = read(folder, "cluster_metadata/round_2_aggregation.json")["departments"]["hr"]["rank_errors"]
    assert errors["client_0"] == errors["client_2"] > errors["client_1"] > 0
    assert "hr/client_1/rank_error" in (folder / "metrics.csv").read_text()
    config = read(folder, "client_exports/hr/round_2_client_1/adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (16, 32)  # at the scale of all, 2: B is a quarter of what it trained


def test_what_a_client_of_its_own_rank_sends_is_what_is_counted(finished):
    sent = read(finished("svd"), "cluster_metadata/round_2_aggregation.json")["bytes"]
    assert sent["hr/client_1"] == 4 * sent["hr/client_0"] == 2 * sent["engineering/client_0"]
    assert sent["client/up"] == sum(n for client, n in sent.items() if "client_" in client)


def test_central_trains_on_everything_and_gives_every_department_one_adapter(finished):
    folder = finished("central")
    adapters = [(folder / "adapters" / d / "adapter_model.safetensors").read_bytes() for d in DEPARTMENTS]
    assert len(set(adapters)) == 1
    lines = (folder / "client_runs/pooled/all/round_1.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 3 * 6 // 4
    assert not (folder / "client_exports").exists()
    losses = read(folder, "federated_eval.json")["mean"]
    assert losses["final"]["loss"] < losses["base"]["loss"]
    assert list(checkpoints(folder)) == [1, 2]
    assert read(folder, "cluster_metadata/round_1_aggregation.json")["bytes"] == {"client/up": 0, "client/down": 0}
    before = read(folder, "federated_eval.json")
    assert evaluate(folder) == before


def test_another_profile_is_another_run(fit, finished, tmp_path):
    first = fit("svd", tmp_path, "--rounds", "1")
    with pytest.raises(ValueError, match=r"lora\.profiles: expected .* with which the run started, got "):
        fit("svd", tmp_path, "--rounds", "2", "--lora.profiles={hr: {r: 4}}", resume=first)
