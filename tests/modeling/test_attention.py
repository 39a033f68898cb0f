"""A packed row of ragged sequences gives what each sequence gives alone in the plain transformers model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fl_lightning.data.packing import pack
from fl_lightning.modeling.attention import (
    ATTENTION_NAME,
    UnsupportedAttention,
    packed_attention,
    packed_kwargs,
    restore_attention,
    use_packed_attention,
)
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.modeling.packed_layout import PackedLayout
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
    packed = packed_kwargs(PackedLayout.from_lengths(lengths, torch.device("cpu")))
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


def test_bundled_base_packed_equals_alone(tiny_base, loaded_tiny_base, make_examples):
    examples = make_examples(4, seed=6, low=20, high=60)
    module = LoraClientModule(create_lora_model(tiny_base[0])).eval()
    plain = create_lora_model(copy.deepcopy(loaded_tiny_base[0])).eval()
    plain.get_base_model().set_attn_implementation("eager")
    with torch.no_grad():
        got = module(pack([[e] for e in examples])).loss
        torch.testing.assert_close(got, alone(plain, examples), atol=1e-3, rtol=0)


def test_sequences_of_a_row_do_not_see_each_other(micro_model, random_state, make_examples):
    module, _ = packed_and_plain(micro_model, random_state, "qwen")
    first, second, other = make_examples(3, seed=8)
    with torch.no_grad():
        before = module(pack([[first], [second]])).loss
        after = module(pack([[other], [second]])).loss
    assert before[1].item() == pytest.approx(after[1].item(), abs=1e-5)
    assert before[0].item() != pytest.approx(after[0].item(), abs=1e-3)


def test_grouped_queries_equal_repeated_keys_and_values():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 7, 8, generator=generator)
    key, value = (torch.randn(1, 2, 7, 8, generator=generator) for _ in range(2))
    got = attend(query, key, value, (3, 4))
    wide = [t.repeat_interleave(2, dim=1) for t in (key, value)]
    wanted = attend(query, *wide, (3, 4))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lengths", [(40, 3, 21, 39, 1), (5, 5, 5), (1, 1), (2, 60)])
def test_packed_attention_equals_a_block_causal_mask(lengths):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, sum(lengths), 4, generator=generator, requires_grad=True) for _ in range(3))
    blocks = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=blocks).transpose(1, 2)
    got = attend(query, key, value, lengths)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    weights = torch.randn(wanted.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), (query, key, value)),
        torch.autograd.grad((wanted * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 3, 50])
def test_sliding_window_hides_tokens_further_back(window):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, 5, 4, generator=generator) for _ in range(3))
    got = attend(query, key, value, (5,), sliding_window=window)
    scores = (query @ key.transpose(2, 3) / 2)[0, 0]
    for row in range(5):
        seen = slice(max(0, row - window + 1), row + 1)
        wanted = scores[row, seen].softmax(0) @ value[0, 0, seen]
        torch.testing.assert_close(got[0, row, 0], wanted, atol=1e-6, rtol=0)


def test_scaling_is_applied_to_the_scores():
    query = torch.ones(1, 1, 2, 4)
    value = torch.tensor([[[[0.0] * 4, [1.0] * 4]]])
    key = torch.cat([torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)], dim=2)
    got = attend(query, key, value, (2,), scaling=0.25)
    assert got[0, 1, 0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=1e-6)


def test_models_of_the_attention_interface_are_switched_and_back(micro_model):
    model = micro_model("qwen")
    use_packed_attention(model)
    assert model.config._attn_implementation == ATTENTION_NAME
    restore_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "reason"), [("stablelm", "cannot be replaced"), ("bloom", "cannot be replaced"), ("mamba", "recurrent")]
)
def test_models_with_another_attention_are_left_alone(micro_model, kind, reason):
    model = micro_model(kind)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedAttention, match=reason):
        use_packed_attention(model)
    assert model.config._attn_implementation == before


def test_a_model_with_eager_attention_of_its_own_is_left_alone(micro_model):
    model = micro_model("qwen")
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedAttention, match="eager"):
        use_packed_attention(model)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_an_argument_that_is_not_known_is_refused(arguments, reason):
    query, key, value = torch.zeros(3, 1, 2, 4, 4)
    with pytest.raises(UnsupportedAttention, match=reason):
        attend(query, key, value, (1, 3), **arguments)
    assert attend(query, key, value, (1, 3), softcap=None, position_ids=torch.zeros(1, 4)).shape == (1, 4, 2, 4)


def test_a_mask_that_the_model_made_itself_is_refused():
    query, key, value = torch.zeros(3, 1, 2, 4, 4)
    arguments = {
        **packed_kwargs(PackedLayout.from_lengths((4,), torch.device("cpu"))),
        "attention_mask": torch.zeros(1, 1, 4, 4),
    }
    with pytest.raises(UnsupportedAttention, match="mask"):
        packed_attention(torch.nn.Identity(), query, key, value, **arguments)


def test_a_window_that_the_config_does_not_name_is_refused(micro_model):
    module = micro_model("qwen").model.layers[0].self_attn
    query, key, value = torch.zeros(3, 1, 2, 4, 4)
    packed = packed_kwargs(PackedLayout.from_lengths((4,), torch.device("cpu")))
    packed_attention(module, query, key, value, **packed)
    with pytest.raises(UnsupportedAttention, match="last 3 tokens, its config says None"):
        packed_attention(module, query, key, value, **packed, sliding_window=3)


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


def reference_varlen(query, key, value, starts, key_starts, longest, key_longest, **options):
    """Flash Attention's form for sequences of any length, one sequence after another with an explicit mask."""
    assert starts.dtype == torch.int32
    assert torch.equal(starts, key_starts)
    sizes = starts.diff().tolist()
    assert longest == key_longest == max(sizes)
    left, right = options.pop("window_size", (-1, 0))
    assert right == 0
    assert options.pop("is_causal", True)
    parts = []
    for q, k, v in zip(*(torch.split(x, sizes) for x in (query, key, value)), strict=True):
        distance = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
        mask = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize(
    "arguments",
    [{"is_causal"}, {"window_size", "scale"}, {"window_size", "scale", "enable_gqa"}],
    ids=["torch 2.10", "torch 2.11", "torch 2.12"],
)
def test_flash_attention_is_asked_for_what_the_groups_compute(monkeypatch, arguments, window, key_heads):
    """With the arguments that `varlen_attn` has in each version of torch."""
    from fl_lightning.modeling import attention

    lengths = (7, 1, 12, 3, 3)
    query = torch.randn(1, 4, sum(lengths), 8)
    key, value = torch.randn(2, 1, key_heads, sum(lengths), 8)
    grouped = attend(query, key, value, lengths, scaling=0.3, sliding_window=window)

    def varlen(*tensors, **options):
        assert options.keys() <= arguments
        calls.append(options)
        return reference_varlen(*tensors, **options)

    calls, can_use = [], attention.can_use_varlen_attention
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "VARLEN_ARGUMENTS", frozenset(arguments))
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=query.shape, device=None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda _, dropout, window: can_use(on_gpu, 0.0, window))
    flash = attend(query, key, value, lengths, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(flash, grouped)
    assert len(calls) == (window is None or "window_size" in arguments)


def test_no_backend_of_a_gpu_builds_a_plan_for_each_shape():
    from fl_lightning.modeling.attention import CUDA_BACKENDS

    assert SDPBackend.CUDNN_ATTENTION not in CUDA_BACKENDS


def test_flash_attention_is_left_alone_on_a_cpu():
    from fl_lightning.modeling.attention import can_use_varlen_attention

    assert not can_use_varlen_attention(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 20])
def test_flash_attention_on_this_gpu_gives_what_the_groups_give(monkeypatch, window):
    from fl_lightning.modeling import attention

    lengths, device = (70, 1, 33, 64), torch.device("cuda")
    query = torch.randn(1, 8, sum(lengths), 64, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, sum(lengths), 64, device=device, dtype=torch.bfloat16)
    if not attention.can_use_varlen_attention(query, 0.0, window):
        pytest.skip("this GPU or this torch has no Flash Attention for sequences of any length")
    arguments = packed_kwargs(PackedLayout.from_lengths(lengths, device))
    flash = packed_attention(torch.nn.Identity(), query, key, value, **arguments, sliding_window=window)[0]
    monkeypatch.setattr(attention, "can_use_varlen_attention", lambda query, dropout, window: False)
    grouped = packed_attention(torch.nn.Identity(), query, key, value, **arguments, sliding_window=window)[0]
    torch.testing.assert_close(flash.float(), grouped.float(), atol=2e-2, rtol=2e-2)
