import types

import pytest
import torch

from fl_lightning.config.parsing import parse_config
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.training import row_budget as module
from fl_lightning.training.cohorts import STEP_TOKENS
from fl_lightning.training.memory_estimate import base_sizes, token_bytes


@pytest.fixture
def model(tiny_base):
    return create_lora_model(tiny_base[0], r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("recompute", [False, True])
def test_bytes_of_a_loaded_model_are_those_that_its_config_promises(model, recompute):
    per_token, fixed = module.model_bytes(model, recompute)
    expected = base_sizes(parse_config(["--lora-r", "4"]))
    assert per_token == token_bytes(expected, 4, recompute)
    assert fixed > 4 * expected.parameters


def test_a_small_card_gets_a_smaller_row(model, monkeypatch):
    per_token, fixed = module.model_bytes(model, False)
    for share, tokens in ((1.2, STEP_TOKENS["cuda"]), (1.0, STEP_TOKENS["cuda"] // 2)):
        card = types.SimpleNamespace(total_memory=int(share * (fixed + STEP_TOKENS["cuda"] * per_token)))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert module.row_budget(model, torch.device("cuda"), False) == tokens
    limit_mb = card.total_memory // 2**20
    large = types.SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    assert module.row_budget(model, torch.device("cuda"), False, limit_mb) == tokens
    assert module.row_budget(model, torch.device("cuda"), False, 10**6) == STEP_TOKENS["cuda"]
    assert module.row_budget(model, torch.device("cpu"), False) == STEP_TOKENS["cpu"]


def test_a_model_without_the_sizes_of_a_decoder_gets_the_usual_row(model, monkeypatch):
    monkeypatch.setattr(module, "layer_sizes", lambda config: int(config.num_attention_heads_of_nobody))
    assert module.model_bytes(model, False)[0] == 0
