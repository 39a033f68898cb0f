"""``share: a`` on real records: each client's own B over rounds, through a resume, and for a newcomer."""

import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning import (
    FederatedDataModule,
    FederatedTrainer,
    FederationConfig,
    LoraClientModule,
    TrainingConfig,
    create_lora_model,
)
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig
from fl_lightning.federation.checkpoint import load_checkpoint, save_checkpoint
from fl_lightning.state import select


class ClientStarts(FederatedCallback):
    """What each client started from, and what it came back with."""

    def __init__(self):
        self.starts, self.ends = {}, {}

    def on_round_start(self, *, trainer, tasks):
        self.starts.update({(t.round_num, t.client_id): {n: x.clone() for n, x in t.start.items()} for t in tasks})

    def on_client_end(self, *, trainer, update):
        self.ends[update.round_num, update.client_id] = (update.state, update.num_examples)


@pytest.fixture
def play(tiny_base):
    model, tokenizer = tiny_base
    data = FederatedDataModule("bundled:departments", tokenizer, clients_per_dept=3, max_records=4)
    data.setup("fit")
    kept = {c: d for c, d in data.federation().items() if d.department in ("hr", "finance")}
    lora = create_lora_model(model, seed=3)

    def run(rounds, resume=None, **federation):
        watch = ClientStarts()
        config = FederationConfig(
            rounds=rounds,
            share="a",
            client_clusters=ClientClustersConfig(num_clusters=1),
            dept_clusters=DeptClustersConfig(enabled=False),
            **federation,
        )
        trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1), callbacks=[watch], federation=config,
            training=TrainingConfig(learning_rate=5e-3),
        )  # fmt: skip
        state = trainer.fit(LoraClientModule(lora, learning_rate=5e-3), kept, resume_from=resume)
        return state, watch

    return run


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_clients_keep_their_own_b_and_share_one_a(play, tmp_path):
    state, watch = play(2)
    own = {c: select(watch.ends[1, c][0], "b") for c in ("hr/client_0", "hr/client_1")}
    assert not same(own["hr/client_0"], own["hr/client_1"])
    for client, b in own.items():
        assert same(b, select(watch.starts[2, client], "b"))
    assert same(select(watch.starts[2, "hr/client_0"], "a"), select(watch.starts[2, "hr/client_1"], "a"))
    first, _ = play(1)
    save_checkpoint(tmp_path / "round_1", first)
    again, resumed = play(2, resume=load_checkpoint(tmp_path / "round_1")[0])
    for client, b in own.items():
        assert same(b, select(resumed.starts[2, client], "b"))
    assert all(same(again.personal[c], state.personal[c]) for c in state.personal)


@pytest.mark.slow
def test_a_newcomer_starts_from_its_departments_mean(play):
    _, watch = play(6, clients_per_round=1)
    newcomers = 0
    for department in ("hr", "finance"):
        latest = {}
        for round_num in range(1, 7):
            ((_, client),) = [key for key in watch.starts if key[0] == round_num and key[1].startswith(department)]
            b = select(watch.starts[round_num, client], "b")
            if client in latest:
                assert same(b, select(latest[client][0], "b"))
            elif latest:
                newcomers += 1
                total = sum(count for _, count in latest.values())
                for name, tensor in b.items():
                    mean = sum(state[name].double() * count / total for state, count in latest.values())
                    assert tensor.any()
                    torch.testing.assert_close(tensor, mean.float(), atol=1e-7, rtol=1e-6)
            latest[client] = watch.ends[round_num, client]
    assert newcomers >= 2
