"""Whole runs with secure aggregation, with the micro base."""

import json

import pytest
import torch
from run_files import adapters, metrics, read
from safetensors.torch import load_file
from shared_folder import make_once

from fl_lightning import InputError
from fl_lightning.privacy import epsilon_of_shares

MASKED = ["--federation.secure_aggregation", "true", "--federation.masking.min_clients", "2", "--num-clusters", "1"]
PRIVATE = [*MASKED, "--federation.guard.name", "dp", "--federation.weighting", "uniform"]
PRIVATE += ["--federation.privacy.noise_multiplier", "0.1", "--federation.privacy.noise_seed", "5"]


@pytest.fixture(scope="session")
def masked(fit, tmp_path_factory):
    """A finished run of two rounds with secure aggregation. Read it only."""
    folder = make_once(tmp_path_factory, "run_masked", lambda folder: fit(folder, "--rounds", "2", *MASKED))
    return folder / "version_0"


def test_adapters_are_those_of_plain_averaging(fit, masked, tmp_path):
    plain = fit(tmp_path, "--rounds", "1", "--num-clusters", "1")
    folder = fit(tmp_path, "--rounds", "1", *MASKED)
    for file in sorted(plain.glob("adapters/*/*.safetensors")):
        other = load_file(folder / file.relative_to(plain))
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)
    assert not any("client_exports" in path for path in adapters(masked))
    assert read(masked, "client_lora_federated.json") == {"rounds": {}}
    line = json.loads((masked / "ledger.jsonl").read_text().splitlines()[1])
    assert {key for entry in line["clients"].values() for key in entry} == {"update", "records"}
    assert metrics(masked)[2]["hr/summed"] == "2"
    assert float(metrics(masked)[2]["hr/quantization_error"]) < 1e-6


@pytest.mark.slow
def test_resumed_run_ends_byte_identical_to_a_straight_one(fit, masked, tmp_path):
    first = fit(tmp_path, "--rounds", "1", *MASKED)
    resumed = fit(tmp_path, "--rounds", "2", *MASKED, resume=first)
    assert adapters(resumed) == adapters(masked)
    assert metrics(resumed) == metrics(masked)


@pytest.mark.slow
def test_a_resumed_run_with_noise_ends_byte_identical_to_a_straight_one(fit, masked, tmp_path):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'fl_lightning[privacy]'")
    straight = fit(tmp_path, "--rounds", "2", *PRIVATE)
    first = fit(tmp_path, "--rounds", "1", *PRIVATE)
    resumed = fit(tmp_path, "--rounds", "2", *PRIVATE, resume=first)
    assert adapters(resumed) == adapters(straight) != adapters(masked)
    assert metrics(resumed) == metrics(straight)
    assert float(metrics(straight)[2]["hr/epsilon"]) == pytest.approx(epsilon_of_shares(0.1, 2, 1e-5))
    assert metrics(straight)[2]["hr/summed"] == "2"
    assert (resumed / "ledger.jsonl").exists()


def test_departments_with_too_few_clients_are_refused_before_anything_is_written(fit, tmp_path):
    with pytest.raises(InputError, match="expected at least 3 clients of each department in a round"):
        fit(tmp_path, "--rounds", "1", *MASKED, "--federation.masking.min_clients", "3")
    assert not list(tmp_path.iterdir())
