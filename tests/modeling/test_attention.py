"""A packed row of ragged sequences gives what each sequence gives alone in the plain transformers model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fl_lightning.data.packing import pack
from fl_lightning.errors import InputError
from fl_lightning.modeling.attention import (
    ATTENTION_NAME,
    UnsupportedAttention,
    packed_attention,
    packed_kwargs,
    restore_attention,
    use_packed_attention,
)
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.module import LoraClientModule

TARGETS = {
    "qwen": ["q_proj", "v_proj"],
    "llama": ["q_proj", "v_proj"],
    "stablelm": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bloom": ["query_key_value"],
    "mamba": ["in_proj"],
}


def attend(query, key, value, lengths, **arguments):
    """`packed_attention` on a row of sequences of the lengths given."""
    packed = packed_kwargs(SimpleNamespace(_attn_implementation=ATTENTION_NAME), lengths, torch.device("cpu"))
    output, weights = packed_attention(torch.nn.Identity(), query, key, value, **packed, **arguments)
    assert weights is None
    return output


def adapted(model, targets):
    return create_lora_model(model, r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets)


def alone(model, examples):
    """Summed loss of each sequence run alone through the plain model, full logits, no packing."""
    losses = []
    for example in examples:
        logits = model(input_ids=example.ids[None]).logits[0].float()
        places = example.supervised.nonzero().squeeze(1)
        losses.append(cross_entropy(logits[places - 1], example.ids[places], reduction="sum"))
    return torch.stack(losses)


def packed_and_plain(micro_model, random_state, kind):
    """The same adapted model twice: under the module, and untouched with transformers' own eager attention."""
    packed = adapted(micro_model(kind), TARGETS[kind])
    plain = adapted(micro_model(kind), TARGETS[kind])
    state = random_state(packed)
    load_lora_state(packed, state)
    load_lora_state(plain, state)
    if kind != "mamba":
        plain.get_base_model().set_attn_implementation("eager")
    return LoraClientModule(packed).eval(), plain.eval()


@pytest.mark.parametrize("kind", ["qwen", "llama", "gpt2", "stablelm"])
def test_packed_row_gives_the_loss_of_each_sequence_alone(micro_model, random_state, make_examples, kind):
    module, plain = packed_and_plain(micro_model, random_state, kind)
    examples = make_examples(5, seed=3)
    sums = module(pack([[example] for example in examples]))
    torch.testing.assert_close(sums.loss, alone(plain, examples), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen", "llama", "gpt2", "stablelm"])
def test_packed_row_gives_the_gradients_of_the_sequences_alone(micro_model, random_state, make_examples, kind):
    module, plain = packed_and_plain(micro_model, random_state, kind)
    examples = make_examples(5, seed=4)
    module(pack([examples])).loss.sum().backward()
    alone(plain, examples).sum().backward()
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    got = {n: p.grad for n, p in module.model.named_parameters() if p.requires_grad}
    assert len(got) == len(wanted) >= 4
    assert all(g.abs().max() > 0 for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [("qwen", "packed"), ("llama", "packed"), ("gpt2", "packed"), ("stablelm", "masked"), ("bloom", "padded"),
     ("mamba", "padded")],
)  # fmt: skip
def test_the_first_layout_that_keeps_sequences_apart_is_taken(micro_model, random_state, kind, layout, dtype):
    module, _ = packed_and_plain(micro_model, random_state, kind)
    module.to(dtype)
    module.choose_layout()
    assert module.layout == layout


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_padded_rows_give_the_loss_and_gradients_of_each_sequence_alone(micro_model, random_state, make_examples, kind):
    module, plain = packed_and_plain(micro_model, random_state, kind)
    module.choose_layout()
    examples = make_examples(5, seed=3)
    losses = module(pack([[example] for example in examples])).loss
    torch.testing.assert_close(losses, alone(plain, examples), atol=1e-4, rtol=0)
    losses.sum().backward()
    alone(plain, examples).sum().backward()
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-4, rtol=1e-4)


def test_a_layout_that_is_not_packed_is_said_in_the_log(micro_model, random_state, log_messages):
    module, _ = packed_and_plain(micro_model, random_state, "bloom")
    module.choose_layout()
    assert log_messages == ["INFO BloomForCausalLM trains with padded rows"]


def test_a_model_that_no_layout_suits_is_refused(micro_model, random_state):
    module, _ = packed_and_plain(micro_model, random_state, "qwen")
    batches = []

    def disturb(_, arguments, keywords, output):  # the loss depends on the call
        batches.append(0)
        output.logits = output.logits * (1 + len(batches))

    module._base().register_forward_hook(disturb, with_kwargs=True)
    with pytest.raises(InputError, match="expected the loss of each sequence alone, got packed: a loss differs by"):
        module.choose_layout()


def test_an_argument_of_attention_that_is_not_known_is_refused():
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UnsupportedAttention, match="attention with softcap"):
        attend(query, query, query, (2,), softcap=50.0)
    attend(query, query, query, (2,), softcap=None, position_ids=torch.zeros(1, 2))


def test_scaling_is_applied_to_the_scores():
    query = torch.ones(1, 1, 2, 4)
    value = torch.tensor([[[[0.0] * 4, [1.0] * 4]]])
    key = torch.cat([torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)], dim=2)
    got = attend(query, key, value, (2,), scaling=0.25)
    assert got[0, 1, 0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=1e-6)


def test_models_of_the_attention_interface_are_switched(micro_model):
    model = micro_model("qwen")
    assert use_packed_attention(model)
    assert model.config._attn_implementation == ATTENTION_NAME


def test_another_attention_than_sdpa_is_not_replaced(micro_model):
    model = micro_model("qwen")
    model.set_attn_implementation("eager")
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == "eager"


def test_a_switched_model_is_switched_back(micro_model):
    model = micro_model("qwen")
    before = model.config._attn_implementation
    use_packed_attention(model)
    restore_attention(model)
    assert model.config._attn_implementation == before


def test_models_outside_the_attention_interface_are_left_alone(micro_model):
    model = micro_model("stablelm")
    before = model.config._attn_implementation
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == before


def test_ordinary_calls_of_a_switched_model_still_work(micro_model):
    model, plain = micro_model("qwen"), micro_model("qwen")
    use_packed_attention(model)
    ids = torch.arange(5, 17).view(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.no_grad():
        got, wanted = (m(input_ids=ids, attention_mask=mask).logits for m in (model, plain))
    torch.testing.assert_close(got[:, 2:], wanted[:, 2:], atol=1e-5, rtol=1e-5)


def test_generation_of_a_switched_model_equals_the_plain_one(micro_model):
    model, plain = micro_model("qwen"), micro_model("qwen")
    use_packed_attention(model)
    ids = torch.arange(5, 12)[None]
    arguments = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert model.generate(ids, **arguments).tolist() == plain.generate(ids, **arguments).tolist()


def reference_varlen(query, key, value, starts, key_starts, longest, key_longest, *, scale, window_size, enable_gqa):
    """Flash Attention's form for sequences of any length, one sequence after another with an explicit mask."""
    assert starts.dtype == torch.int32
    assert torch.equal(starts, key_starts)
    sizes = starts.diff().tolist()
    assert longest == key_longest == max(sizes)
    left, right = window_size
    assert right == 0
    parts = []
    for q, k, v in zip(*(torch.split(x, sizes) for x in (query, key, value)), strict=True):
        distance = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
        mask = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_flash_attention_is_asked_for_what_the_groups_compute(monkeypatch, window, key_heads):
    from fl_lightning.modeling import attention

    lengths = (7, 1, 12, 3, 3)
    query = torch.randn(1, 4, sum(lengths), 8)
    key, value = torch.randn(2, 1, key_heads, sum(lengths), 8)
    grouped = attend(query, key, value, lengths, scaling=0.3, sliding_window=window)
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda query, dropout: True)
    torch.testing.assert_close(attend(query, key, value, lengths, scaling=0.3, sliding_window=window), grouped)


def test_flash_attention_is_left_alone_on_a_cpu():
    from fl_lightning.modeling.attention import can_use_varlen_attention

    assert not can_use_varlen_attention(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 20])
def test_flash_attention_on_this_gpu_gives_what_the_groups_give(monkeypatch, window):
    from fl_lightning.modeling import attention

    lengths, device = (70, 1, 33, 64), torch.device("cuda")
    query = torch.randn(1, 8, sum(lengths), 64, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, sum(lengths), 64, device=device, dtype=torch.bfloat16)
    if not attention.can_use_varlen_attention(query, 0.0):
        pytest.skip("this GPU or this torch has no Flash Attention for sequences of any length")
    arguments = packed_kwargs(SimpleNamespace(_attn_implementation=ATTENTION_NAME), lengths, device)
    flash = packed_attention(torch.nn.Identity(), query, key, value, **arguments, sliding_window=window)[0]
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda query, dropout: False)
    grouped = packed_attention(torch.nn.Identity(), query, key, value, **arguments, sliding_window=window)[0]
    torch.testing.assert_close(flash.float(), grouped.float(), atol=2e-2, rtol=2e-2)
