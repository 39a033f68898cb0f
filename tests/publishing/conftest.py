"""A run folder made by hand, with a real adapter in it, and a Hub on the loopback interface."""

import json
import os
import shutil
import time

import pytest
import yaml

os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")

SECRET = "/home/erna/secret-data"
"""A path of the user's machine, which nobody else is to see."""


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def figures(loss):
    return {"loss": loss, "perplexity": 10 * loss, "token_accuracy": loss / 10}


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """{name: folder of an adapter of the bundled base, no two alike}, read only."""
    import torch

    from fl_lightning.config import ModelConfig
    from fl_lightning.modeling.base_model import load_base_model
    from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter

    base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
    model = create_lora_model(base, r=2, lora_alpha=4)
    state, root = collect_lora_state(model), tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("hr", "finance", "office", "client_0")):
        export_lora_adapter(model, root / name, {n: t + 0.01 * (number + 1) for n, t in state.items()})
    return root


@pytest.fixture
def make_run(adapters, tmp_path):
    """Factory of finished runs of two rounds: departments hr (3 clients) and finance (2), and a group of both."""

    def make(name="version_0", **config):
        run = tmp_path / name
        run.mkdir()
        config.setdefault("data", {"root": SECRET})
        federation = config.setdefault("federation", {})
        federation.setdefault("rounds", 2)
        federation.setdefault("hierarchy", {"groups": {"office": ["finance", "hr"]}})
        config.setdefault("output", SECRET)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        for who in ("hr", "finance", "office"):
            shutil.copytree(adapters / who, run / "adapters" / who)
        shutil.copytree(adapters / "client_0", run / "client_exports/hr/round_2_client_0")
        (run / "client_exports/hr/round_2_client_0/optimizer.bin").write_text("not for others")
        write(run / "dept_lora_federated.json", {"finance": "adapters/finance", "hr": "adapters/hr"})
        write(run / "group_lora_federated.json", {"office": "adapters/office"})
        exports = {"2": {"hr": {"client_0": "client_exports/hr/round_2_client_0"}}}
        write(run / "client_lora_federated.json", {"rounds": exports})
        both = {
            "hr": {"base": figures(4.0), "final": figures(3.0)},
            "finance": {"base": figures(6), "final": figures(5)},
        }
        whole = {"office": {"base": figures(5.0), "final": figures(4.5)}}
        write(run / "federated_eval.json", {"departments": both, "groups": whole, "mean": {}})
        own = {"hr": {f"client_{n}": {**figures(2.5), "num_examples": 8} for n in range(3)}}
        own["finance"] = {f"client_{n}": {**figures(4.5), "num_examples": 4} for n in range(2)}
        write(run / "client_eval_all_rounds.json", {"rounds": {"1": own, "2": own}})
        for r in (1, 2):
            told = {d: {"weights": {}, "left_out": {}, "scaled": {}, "epsilon": None} for d in ("hr", "finance")}
            if r == 2:
                told["hr"]["left_out"] = {"client_2": "not finite"}
                told["hr"]["epsilon"], told["finance"]["epsilon"] = 3.25, 7.5
            write(run / f"cluster_metadata/round_{r}_aggregation.json", {"round": r, "departments": told})
            write(
                run / f"cluster_metadata/round_{r}_department_clusters.json", {"assignments": {"finance": 0, "hr": 1}}
            )
        trained = {
            "hr/client_0": 100,
            "hr/client_1": 20,
            "hr/client_2": 3,
            "finance/client_0": 7,
            "finance/client_1": 4,
        }
        write(run / "checkpoints/round_1/state.json", {"examples": {"hr/client_0": 1}})
        write(run / "checkpoints/round_2/state.json", {"examples": trained, "key": "of the noise"})
        figures_of_personalize = {
            "hr/client_0": {
                "own": 2.1, "level": 2.0, "mixture": 1.8, "adapter": 1.9, "chosen": "department",
                "weights": {"own": 0.6, "department": 0.38, "base": 0.02}, "adapter_is": "mixture",
            },
            "hr/client_1": {
                "own": 2.2, "level": 2.1, "mixture": 2.0, "adapter": 2.1, "chosen": "department",
                "weights": {"own": 0.1, "department": 0.9, "base": 0.0}, "adapter_is": "department",
            },
        }  # fmt: skip
        for client_id in figures_of_personalize:
            shutil.copytree(adapters / "client_0", run / "personal/adapters" / client_id)
        write(run / "personal_eval.json", {"choose": "mixture", "clients": figures_of_personalize})
        write(run / "samples.json", {"prompt": "Where is my parcel?"})
        return run

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on the loopback interface that this process's client asks, as one who is logged in; nothing waits."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from stub_hub import TOKEN, StubHub

    stub = StubHub()
    stub.waits = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", stub.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", stub.waits.append)
    disable_progress_bars()  # as a process of the command line has it from its start
    yield stub
    enable_progress_bars()
    stub.close()
