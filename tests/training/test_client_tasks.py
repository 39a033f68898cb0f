from __future__ import annotations

import torch

from fl_lightning.config import FederationConfig, LoraConfig
from fl_lightning.federation.state import FederationState
from fl_lightning.training.client_tasks import round_tasks

CLIENTS = {"hr": [f"hr/{name}" for name in "abcdef"], "it": ["it/a", "it/b"]}


def _asked(round_num, present=None, **options):
    initial = {"lora_A": torch.zeros(2, 3), "lora_B": torch.zeros(3, 2)}
    state = FederationState.begin(initial, CLIENTS)
    config = FederationConfig(**options)
    tasks = round_tasks(
        config, LoraConfig(), state, CLIENTS, round_num=round_num, seed=3, evaluate=False, present=present
    )
    return [task.client_id for task in tasks]


def test_a_sample_goes_without_clients_that_are_left_out_and_draws_the_same_others():
    present = {"hr/a", "hr/b", "hr/d", "hr/e", "hr/f", "it/a"}
    for options in ({"clients_per_round": 2}, {"client_fraction": 0.5}, {}):
        for round_num in range(1, 8):
            full = _asked(round_num, **options)
            assert _asked(round_num, present, **options) == [client for client in full if client in present]
    assert len({tuple(_asked(r, present, clients_per_round=2)) for r in range(1, 8)}) > 2
