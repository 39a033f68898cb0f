"""``federation.share_layers``: some decoder layers are averaged, the others stay with each client."""

import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning import FederatedTrainer, FederationConfig, InputError, LoraClientModule
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.training.local_clients import LocalClients

COUNTS = {"hr/client_0": 3, "hr/client_1": 6, "it/client_0": 4}
TRAINING = TrainingConfig(learning_rate=1e-2, batch_size=2)
ALONE = {
    "client_clusters": ClientClustersConfig(num_clusters=1),
    "dept_clusters": DeptClustersConfig(enabled=False),
    "combiner": "fedavg",
}


class Bytes(FederatedCallback):
    """What the clients send in each round."""

    def __init__(self):
        self.up, self.down = [], []

    def on_round_end(self, *, trainer):
        self.up.append(trainer.report.bytes_sent["client/up"])
        self.down.append(trainer.report.bytes_sent["client/down"])


@pytest.fixture
def data(make_examples):
    return {
        c: ClientData(*c.split("/"), make_examples(n, seed=n), make_examples(1, seed=50)) for c, n in COUNTS.items()
    }


def make_module(micro_model):
    return LoraClientModule(create_lora_model(micro_model("qwen"), r=2, lora_alpha=4, seed=3), learning_rate=1e-2)


@pytest.fixture
def play(micro_model, data):
    def run(rounds, share_layers, resume=None, **federation):
        watch = Bytes()
        config = FederationConfig(rounds=rounds, share_layers=share_layers, **{**ALONE, **federation})
        trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1),
            callbacks=[watch],
            federation=config,
            training=TRAINING,
            seed=7,
        )
        return trainer.fit(make_module(micro_model), data, resume_from=resume), watch

    return run


def layer_of(name):
    return int(name.split(".layers.")[1].split(".")[0])


def by_hand(micro_model, data, rounds, shared_layer):
    """{client: its adapter} and {department: mean} after rounds in which the tensors of one layer are averaged."""
    module = make_module(micro_model)
    clients = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, TRAINING, "auto")
    states = dict.fromkeys(data, collect_lora_state(module.model))
    means = {}
    for round_num in range(1, rounds + 1):
        updates = clients.fit([ClientTask(c, round_num, state, 7) for c, state in states.items()])
        fitted = {update.client_id: update.state for update in updates}
        for department in ("hr", "it"):
            names = [c for c in data if c.startswith(department)]
            total = sum(COUNTS[c] for c in names)
            means[department] = {
                n: sum(COUNTS[c] / total * fitted[c][n].double() for c in names).float() for n in fitted[names[0]]
            }
        states = {
            c: {n: means[c[:2]][n] if layer_of(n) == shared_layer else tensor for n, tensor in state.items()}
            for c, state in fitted.items()
        }
    return states, means


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", [0, 1])
def test_rounds_are_those_of_adapters_that_are_averaged_by_hand(play, micro_model, data, layer):
    state, _ = play(2, [layer])
    states, means = by_hand(micro_model, data, 2, layer)
    for client_id in COUNTS:
        assert_close(dict(state.start_of(client_id)), states[client_id])
    for department, mean in means.items():
        assert_close(state.departments[department], mean)
    assert {layer_of(name) for name in state.personal["hr/client_0"]} == {1 - layer}


def test_clients_send_the_shared_layers_only(play):
    everything, half = (play(1, layers)[1] for layers in (None, [1]))
    assert [2 * num for num in half.up + half.down] == everything.up + everything.down


def test_with_one_factor_the_other_and_the_other_layers_stay(play):
    state, watch = play(1, [1], share="a")
    assert watch.up < play(1, [1])[1].up
    kept = state.personal["hr/client_0"]
    assert {(layer_of(n), "lora_A" in n) for n in kept} == {(0, True), (0, False), (1, False)}


def test_a_resumed_run_goes_on_from_the_layers_that_clients_keep(play):
    whole, _ = play(2, [0])
    first, _ = play(1, [0])
    resumed, _ = play(2, [0], resume=first)
    for client_id in COUNTS:
        start, expected = resumed.start_of(client_id), whole.start_of(client_id)
        assert all(torch.equal(start[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layers", [[2], [0, 1], [0, 5]])
def test_layers_that_the_base_lacks_or_all_of_them_are_refused(play, layers):
    with pytest.raises(InputError, match=r"share_layers: expected some of the decoder layers \[0, 1\], not all, got"):
        play(1, layers)


@pytest.mark.parametrize("layers", [[], [-1], [1, 1]])
def test_layers_are_different_indices(layers):
    with pytest.raises(InputError, match="federation.share_layers: expected different indices"):
        FederationConfig(share_layers=layers)
