"""Two processes find the same numbers as one; whole runs of several processes are in tests/test_launch.py."""

import os
import subprocess
import sys
import textwrap

import pytest

from fl_lightning.training.worker_processes import balance_load

WORKER = """
import sys
import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from fl_lightning import Evaluation, FederatedTrainer, LoraClientModule, create_lora_model
from fl_lightning.config import ClientClustersConfig, FederationConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.training.clients import make_clients

out, parallelism, dropout = sys.argv[1], sys.argv[2], float(sys.argv[3])
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
base = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_hidden_layers=1, initializer_range=0.3, **sizes)).eval()
model = create_lora_model(base, 2, 4, dropout, ["q_proj", "v_proj"], seed=7)
draw = torch.Generator().manual_seed(1)
examples = [
    Example(torch.randint(32, (n,), generator=draw), torch.arange(n) >= 1 + n // 3) for n in (5, 3, 9, 4, 7, 6, 8)
]
ids = ["hr/c0", "hr/c1", "hr/c2", "it/c0", "it/c1"]
data = {c: ClientData(*c.split("/"), train=examples[: 3 + i], eval=examples[-2 - i :]) for i, c in enumerate(ids)}
fabric = Fabric(accelerator="cpu", devices=1 if parallelism == "one" else 2)
fabric.launch()
training = TrainingConfig(learning_rate=1e-2, batch_size=2, accumulate_grad_batches=2, clients_at_once=2)
kind = {"clients": "clients", "one": "clients"}.get(parallelism, "data")
# With AdamW's default epsilon, rounding errors of tiny gradients become whole steps.
class Steady(LoraClientModule):
    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.learning_rate, eps=1e-5)
module = Steady(model, learning_rate=1e-2)
clients = make_clients(fabric, module, data, training, parallelism=kind, shard_base_model=parallelism == "fsdp")
federation = FederationConfig(rounds=2, client_clusters=ClientClustersConfig(num_clusters=2))
evaluation = Evaluation()
trainer = FederatedTrainer(fabric=fabric, callbacks=[evaluation], federation=federation, training=training)
state = trainer.fit(module, data, clients=clients)
tensors = {f"{d}|{n}": t.clone() for d, s in state.departments.items() for n, t in s.items()}
for d, values in evaluation.final.items():
    tensors[f"{d}|loss"] = torch.tensor(values["loss"])
for c, values in evaluation.rounds.get("2", {}).get("hr", {}).items():
    tensors[f"{c}|loss"] = torch.tensor(values["loss"])
if parallelism == "fsdp":
    weight = model.get_base_model().model.layers[0].mlp.up_proj.weight
    assert weight.to_local().numel() == weight.numel() // 2
save_file(tensors, f"{out}/rank{fabric.global_rank}.safetensors")
"""


def test_spread_gives_the_heaviest_first_to_the_rank_with_least():
    assert balance_load([3, 3, 2, 2, 2], 2) == [0, 1, 0, 1, 0]
    assert balance_load([1, 1], 3) == [0, 1]
    assert balance_load([], 2) == []


def run(folder, parallelism, dropout):
    from safetensors.torch import load_file

    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    environment = {n: v for n, v in os.environ.items() if n not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    command = [sys.executable, str(script), str(folder), parallelism, str(dropout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(path) for path in sorted(folder.glob("rank*.safetensors"))]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process finds, without dropout."""
    return run(tmp_path_factory.mktemp("one") / "run", "one", 0.0)[0]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    one = run(tmp_path / "one", "one", 0.1)[0]
    spread_out = run(tmp_path / "clients", "clients", 0.1)
    assert len(spread_out) == 2
    assert one.keys() == spread_out[0].keys()
    for name, tensor in one.items():
        assert (spread_out[0][name] - tensor).abs().max() <= 1e-6, name
    # The other process gets the final states too; figures are the first one's.
    for name, tensor in spread_out[1].items():
        assert (spread_out[0][name] - tensor).abs().max() == 0, name
    assert sum("lora" in name for name in spread_out[1]) == sum("lora" in name for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data", "fsdp"])
def test_two_processes_on_one_client_sum_to_its_gradients(tmp_path, one, kind):
    shared = run(tmp_path / kind, kind, 0.0)
    for name, tensor in one.items():
        assert (shared[0][name] - tensor).abs().max() <= 1e-6, name
