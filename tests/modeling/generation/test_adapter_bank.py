from __future__ import annotations

import pytest
import torch

from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.lora import create_lora_model, load_lora_state

TARGETS = {"qwen": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
BASE = BankedAdapter({})


@pytest.fixture
def adapted(micro_model):
    """Factory of PEFT models on a micro model."""

    def make(kind="qwen", r=4, **options):
        names = TARGETS[kind]
        return create_lora_model(micro_model(kind), r=r, lora_alpha=8, target_modules=names, **options).eval()

    return make


@pytest.fixture
def ids():
    return torch.randint(3, 4000, (1, 7), generator=torch.Generator().manual_seed(0))


def alone(model, state, ids):
    """Logits of PEFT's own adapter."""
    load_lora_state(model, state)
    return model(input_ids=ids).logits


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen", "llama", "gpt2"])
def test_each_row_has_the_logits_of_its_own_peft_adapter(adapted, random_state, ids, kind):
    model = adapted(kind)
    states = [random_state(model, seed) for seed in range(3)]
    with model.disable_adapter():
        wanted = [model(input_ids=ids).logits]
    wanted += [alone(model, state, ids) for state in states]
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2  # or there were nothing to tell apart
    bank = AdapterBank(model)
    taken = [BASE, *(bank.prepare(state) for state in states)]
    order = [2, 0, 1, 3, 1]
    with bank.attached():
        bank.set_rows([taken[i] for i in order])
        got = model(input_ids=ids.expand(5, -1)).logits
    for row, i in enumerate(order):
        torch.testing.assert_close(got[row : row + 1], wanted[i], atol=1e-4, rtol=0)


@torch.no_grad()
def test_ranks_and_scales_may_differ(adapted, random_state, ids):
    model = adapted("qwen")
    state = random_state(model, 0)
    half = {name: t[:2] if "lora_A" in name else t[:, :2] for name, t in state.items()}
    bank = AdapterBank(model)
    full, low = bank.prepare(state, relative_scaling=0.5), bank.prepare(half, relative_scaling=2.0)
    padded = {name: torch.zeros_like(t) for name, t in state.items()}
    for name, t in half.items():
        if "lora_A" in name:
            padded[name][:2] = t
        else:
            padded[name][:, :2] = 2 * t
    halved = {name: 0.5 * t if "lora_B" in name else t for name, t in state.items()}
    with bank.attached():
        bank.set_rows([full, low])
        got = model(input_ids=ids.expand(2, -1)).logits
    torch.testing.assert_close(got[:1], alone(model, halved, ids), atol=1e-4, rtol=0)
    torch.testing.assert_close(got[1:], alone(model, padded, ids), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_model_is_as_before_when_the_bank_is_detached(adapted, random_state, ids):
    model = adapted()
    state = random_state(model, 1)
    before = alone(model, state, ids)
    bank = AdapterBank(model)
    with bank.attached():
        bank.set_rows([bank.prepare(random_state(model, 2))])
        assert (model(input_ids=ids).logits - before).abs().max() > 1e-3
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=0, rtol=0)


@torch.no_grad()
def test_rows_of_the_base_alone_are_the_base(adapted, ids):
    model = adapted()
    bank = AdapterBank(model)
    with model.disable_adapter():
        wanted = model(input_ids=ids).logits
    with bank.attached():
        bank.set_rows([BASE])
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=0, rtol=0)


@torch.no_grad()
def test_what_was_taken_does_not_change_with_the_state_it_came_from(adapted, random_state, ids):
    model = adapted()
    state = random_state(model, 0)
    bank = AdapterBank(model)
    taken = bank.prepare(state)
    with bank.attached():
        bank.set_rows([taken])
        before = model(input_ids=ids).logits
        for tensor in state.values():
            tensor.zero_()
        bank.set_rows([BASE])
        bank.set_rows([taken])
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=0, rtol=0)


def test_rows_that_stay_cost_nothing_for_the_next_token(adapted, random_state, monkeypatch):
    model = adapted("qwen")
    bank = AdapterBank(model)
    rows = [bank.prepare(random_state(model, seed)) for seed in range(2)] * 3
    with bank.attached():
        bank.set_rows(rows)
        made = []
        monkeypatch.setattr(torch, "tensor", lambda *args, **options: made.append(args))
        bank.set_rows(list(rows))
        assert made == []


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 5, 32), (15, 32), (3, 1, 5, 32), (3, 5, 1, 32)])
def test_rows_keep_their_adapters_in_whatever_shape_a_layer_gets_them(adapted, random_state, shape):
    model = adapted("qwen")
    bank = AdapterBank(model)
    rows = [BASE, *(bank.prepare(random_state(model, seed)) for seed in (1, 2))]
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    with bank.attached():
        bank.set_rows(rows)
        wanted = layer(x)
        got = layer(x.reshape(shape))
    torch.testing.assert_close(got.reshape(3, 5, -1), wanted, atol=1e-6, rtol=0)
