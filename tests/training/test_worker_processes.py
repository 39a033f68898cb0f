"""Two processes find the same numbers as one; whole runs of several processes are in tests/test_launch.py."""

import pytest
from forked import Forked

from fl_lightning.errors import RunError
from fl_lightning.launch import reserve_port
from fl_lightning.training.worker_processes import WorkerProcesses, balance_load

pytestmark = pytest.mark.xdist_group("forked")

WORKER = """
import sys
import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from fl_lightning import Evaluation, FederatedTrainer, LoraClientModule, create_lora_model
from fl_lightning.config import ClientClustersConfig, FederationConfig, PersonalConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.training.clients import make_clients

out, devices, *modes = sys.argv[1:]
fabric = Fabric(accelerator="cpu", devices=int(devices))
fabric.launch()
draw = torch.Generator().manual_seed(1)
examples = [
    Example(torch.randint(32, (n,), generator=draw), torch.arange(n) >= 1 + n // 3) for n in (5, 3, 9, 4, 7, 6, 8)
]
ids = ["hr/c0", "hr/c1", "hr/c2", "it/c0", "it/c1"]
data = {c: ClientData(*c.split("/"), train=examples[: 3 + i], eval=examples[-2 - i :]) for i, c in enumerate(ids)}
federation = FederationConfig(rounds=2, client_clusters=ClientClustersConfig(num_clusters=2))


# With AdamW's default epsilon, rounding errors of tiny gradients become whole steps.
class Steady(LoraClientModule):
    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.learning_rate, eps=1e-5)


def run(parallelism, dropout, batch_size, window):
    training = TrainingConfig(
        learning_rate=1e-2, batch_size=batch_size, accumulate_grad_batches=window, clients_at_once=2
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_hidden_layers=1, initializer_range=0.3, **sizes)).eval()
    model = create_lora_model(base, 2, 4, dropout, ["q_proj", "v_proj"], seed=7)
    module = Steady(model, learning_rate=1e-2)
    kind = "data" if parallelism in ("data", "fsdp") else "clients"
    clients = make_clients(fabric, module, data, training, parallelism=kind, shard_base_model=parallelism == "fsdp")
    evaluation = Evaluation()
    trainer = FederatedTrainer(
        fabric=fabric, callbacks=[evaluation], federation=federation, training=training,
        personal=PersonalConfig(own="during"),
    )
    state = trainer.fit(module, data, clients=clients)
    tensors = {f"{d}|{n}": t.clone() for d, s in state.departments.items() for n, t in s.items()}
    tensors |= {f"{c}|own|{n}": t.clone() for c, s in state.own_adapters.items() for n, t in s.items()}
    for d, values in evaluation.final.items():
        tensors[f"{d}|loss"] = torch.tensor(values["loss"])
    for c, values in evaluation.rounds.get("2", {}).get("hr", {}).items():
        tensors[f"{c}|loss"] = torch.tensor(values["loss"])
    if parallelism == "fsdp":
        weight = model.get_base_model().model.layers[0].mlp.up_proj.weight
        assert weight.to_local().numel() == weight.numel() // 2
    return tensors


for mode in modes:
    parallelism, dropout, batches = mode.split("=")
    tensors = run(parallelism, float(dropout), *map(int, batches.split("x")))
    save_file(tensors, f"{out}/{mode}.rank{fabric.global_rank}.safetensors")
"""


def test_balance_load_gives_the_heaviest_item_to_the_rank_with_the_smallest_load():
    assert balance_load([3, 3, 2, 2, 2], 2) == [0, 1, 0, 1, 0]
    assert balance_load([1, 1], 3) == [0, 1]
    assert balance_load([], 2) == []


def test_a_first_process_that_has_ended_after_saying_stop_needs_no_answer():
    class Channel:
        def receive(self, source):
            return {"do": "stop"}, ["state"]

        def send(self, to, header):
            raise RunError("process 0 of the run is lost")

    process = WorkerProcesses.__new__(WorkerProcesses)
    process._channel = Channel()
    assert process.serve() == ["state"]


def rank_of(folder, rank, count, port, modes):
    """One of several processes, as torchrun starts them."""
    code = f"import sys; sys.argv[1:] = {[str(folder), str(count), *modes]!r}\n{WORKER}"
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    several = {**group, "LOCAL_RANK": str(rank), "RANK": None, "WORLD_SIZE": str(count)} if count > 1 else {}
    alone = dict.fromkeys((*group, "LOCAL_RANK", "RANK", "WORLD_SIZE"))
    return Forked(code, folder, **{**alone, **several})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{mode and dropout: tensors of each rank} after two rounds; one launch for each number of processes."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("processes")
    one, two = ["one=0.1=2x2", "one=0.0=2x2", "one=0.0=4x1"], ["clients=0.1=2x2", "clients=0.0=2x2", "data=0.0=2x2"]
    holder, port = reserve_port()
    with holder:
        started = [rank_of(folder, 0, 1, port, one)]
        started += [rank_of(folder, rank, 2, port, [*two, "fsdp=0.0=2x2"]) for rank in range(2)]
        for process in started:
            code, output = process.finish()
            assert code == 0, output[-3000:]
    modes = sorted({path.name.split(".rank")[0] for path in folder.glob("*.safetensors")})
    return {mode: [load_file(path) for path in sorted(folder.glob(f"{mode}.rank*"))] for mode in modes}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(results):
    (one,), two = results["one=0.1=2x2"], results["clients=0.1=2x2"]
    assert len(two) == 2
    assert one.keys() == two[0].keys()
    for name, tensor in one.items():
        assert (two[0][name] - tensor).abs().max() <= 1e-6, name
    # The other process gets the final states of departments too; only the first one has losses and own adapters.
    for name, tensor in two[1].items():
        assert (two[0][name] - tensor).abs().max() == 0, name
    assert sum("lora" in name for name in two[1]) == sum("lora" in name and "own" not in name for name in one)
    assert sum("|own|" in name for name in one) == 5 * 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "fsdp"])
def test_two_processes_on_one_client_sum_to_its_gradients(results, mode):
    (one,), two = results["one=0.0=2x2"], results[f"{mode}=0.0=2x2"]
    assert len(two) == 2
    for name, tensor in one.items():  # Adam divides by small gradients, whose last bits depend on the order of a sum
        assert (two[0][name] - tensor).abs().max() <= 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["one", "clients", "data", "fsdp"])
def test_accumulation_counts_targets_in_every_mode(results, mode):
    """Two micro-batches of 2 are one batch of 4."""
    whole, accumulated = results["one=0.0=4x1"][0], results[f"{mode}=0.0=2x2"][0]
    for name, tensor in whole.items():
        assert (accumulated[name] - tensor).abs().max() <= 1e-5, name
