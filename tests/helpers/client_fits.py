"""Tasks of clients on micro models, and comparisons of what their fits return."""

from __future__ import annotations

import torch

from fl_lightning.federation.protocol import ClientTask
from fl_lightning.module import LoraClientModule

RATE = 1e-3
EPS = 1e-5  # with AdamW's default of 1e-8, a rounding error in a vanishing gradient becomes a whole step
TARGETS = {"gpt2": ["c_attn"], "bloom": ["query_key_value"], "mamba": ["in_proj"]}


class SteadyModule(LoraClientModule):
    """Takes AdamW steps that rounding cannot flip."""

    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, eps=EPS)


def tasks_for(model, random_state, ids=(0, 1, 2), round_num=1, run_seed=7):
    return [ClientTask(f"hr/client_{k}", round_num, random_state(model, seed=k), run_seed) for k in ids]


def assert_states_close(first, second, atol):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=0)


def assert_states_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
