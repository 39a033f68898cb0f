"""Fake clients and tiny hand-made states: rounds whose numbers can be worked out on paper."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning import FederatedTrainer
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FederationConfig, FloraConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientUpdate, Metrics
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.own_mixture import weights_of

A, B = "w.lora_A.weight", "w.lora_B.weight"


def make_state(a=(1.0, 0.0), b=(0.0, 0.0, 0.0)):
    """A of shape (1, 2), 8 bytes; B of shape (3, 1), 12 bytes."""
    return {A: torch.tensor([a], dtype=torch.float32), B: torch.tensor(b, dtype=torch.float32).view(3, 1)}


class FakeClients:
    """Answers each round's tasks from a script: one {client_id: (state, num_examples)} a round."""

    def __init__(self, script, data, losses=(2.0, 1.0)):
        self.script, self.data, self.losses = script, data, list(losses)
        self.tasks = {}
        self.evaluated = []

    def fit(self, tasks, on_step=None, journal=None):
        for task in tasks:
            self.tasks[task.round_num, task.client_id] = task
            answer = self.script[task.round_num - 1].get(task.client_id)
            if answer is None:
                continue
            if on_step is not None:
                on_step([task.client_id], 1.0, 7)
            metrics = self.evaluate([(answer[0], task.client_id)])[0] if task.evaluate else None
            kept = weights_of(task.start) if task.is_own else {}
            state, count = {**answer[0], **kept}, answer[1]
            yield ClientUpdate(task.client_id, task.round_num, state, count, 70, self.losses, 0.5, metrics, task.is_own)

    def evaluate(self, jobs, split="eval"):
        """A loss that can be read off the state: the sum of A, over as many tokens as there are records."""
        jobs = list(jobs)
        self.evaluated.extend(jobs)
        sizes = [len(self.data[client_id].eval) for _, client_id in jobs]
        return [Metrics(float(s[A].sum()) * n, 0.5 * n, n, n) for (s, _), n in zip(jobs, sizes, strict=True)]


@pytest.fixture
def state():
    return make_state


@pytest.fixture
def plain_config():
    """Weighted aggregation alone; switch on what a test is about."""

    def make(*, rounds=1, share="all", momentum=1.0, use_residual=True, num_clusters=1, global_mix=0.2, **dept):
        dept.setdefault("enabled", bool(dept))
        return FederationConfig(
            rounds=rounds,
            share=share,
            flora=FloraConfig(momentum=momentum, use_residual=use_residual),
            client_clusters=ClientClustersConfig(num_clusters=num_clusters, global_mix=global_mix),
            dept_clusters=DeptClustersConfig(**dept),
        )

    return make


@pytest.fixture
def play(plain_config):
    """Run a script of updates through FederatedTrainer and give back the trainer; `trainer.clients` is the fake."""

    def run(
        script,
        config=None,
        *,
        callbacks=(),
        run_folder=None,
        initial=None,
        resume=None,
        history=(),
        on_error=None,
        model=None,
        fabric=None,
        personal=None,
        evaluation=None,
    ):
        config = config or plain_config(rounds=len(script))
        ids = sorted({client_id for updates in script for client_id in updates})
        data = {c: ClientData(*c.split("/"), train=[[0]], eval=[[0]] * (1 + i)) for i, c in enumerate(ids)}
        trainer = FederatedTrainer(
            fabric=fabric or Fabric(accelerator="cpu", devices=1),
            callbacks=callbacks,
            federation=config,
            personal=personal,
            evaluation=evaluation,
            run_folder=run_folder,
        )
        start = resume or FederationState.begin(initial or make_state(), {c.split("/")[0] for c in ids})
        try:
            clients = FakeClients(script, data)
            trainer.fit(SimpleNamespace(model=model), data, clients=clients, resume_from=start, history=history)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error)
        return trainer

    return run
