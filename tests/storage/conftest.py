"""A run folder made by hand, without any adapter's files, and what `personalize` adds to it."""

import json

import pytest

PLACES = {"hr": "adapters/hr", "finance": "adapters/finance"}
ROUNDS = {
    "rounds": {
        "2": {"hr": {"client_0": "client_exports/hr/round_2_client_0"}},
        "10": {"hr": {"client_10": "x/client_10", "client_2": "x/client_2"}},
    }
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "version_0"
    for place in ("client_exports/hr/round_2_client_0", "x/client_10", "x/client_2"):
        (folder / place).mkdir(parents=True)
    (folder / "dept_lora_federated.json").write_text(json.dumps(PLACES))
    (folder / "client_lora_federated.json").write_text(json.dumps(ROUNDS))
    return folder


@pytest.fixture
def mix(run):
    """Function that writes what `fit` writes about the mixture of hr, with some values replaced; the run."""

    def write(**replaced):
        weights = {"department": 0.748, "cluster": 0.002, "root": 0.25}
        folders = {"department": "adapters/hr", "cluster": "mixture_levels/cluster_1", "root": "mixture_levels/root"}
        for place in ("adapters/hr", "mixture_levels/root"):
            (run / place).mkdir(parents=True, exist_ok=True)
        values = {"weights": weights, "losses": {}, "adapters": folders, **replaced}
        (run / "department_mixtures.json").write_text(json.dumps({"round": 1, "departments": {"hr": values}}))
        return run

    return write


@pytest.fixture
def personalize(run):
    """Function that writes what `personalize` writes about client_0 of hr, with some values replaced; the run."""

    def write(choose="mixture", **replaced):
        weights = {"own": 0.598, "department": 0.3, "root": 0.002, "base": 0.1}
        folders = {"own": "personal/levels/own/hr/client_0", "department": "personal/levels/department/hr"}
        for place in (*folders.values(), "personal/adapters/hr/client_0"):
            (run / place).mkdir(parents=True, exist_ok=True)
        values = {"weights": weights, "chosen": "department", "adapters": folders, **replaced}
        (run / "personal_eval.json").write_text(json.dumps({"choose": choose, "clients": {"hr/client_0": values}}))
        return run

    return write
