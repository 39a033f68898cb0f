"""Each model gets its sequences in a layout that leaves every loss and gradient as it is in plain transformers."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.nn.functional import cross_entropy

from fl_lightning.data.packing import pack
from fl_lightning.errors import InputError
from fl_lightning.modeling import attention, row_layout
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.modeling.packed_layout import PackedLayout
from fl_lightning.module import LoraClientModule

TARGETS = {"gpt2": ["c_attn"], "bloom": ["query_key_value"], "mamba": ["in_proj"]}


def adapted(base, kind, random_state=None):
    model = create_lora_model(base, 4, 8, 0.0, TARGETS.get(kind, ["q_proj", "v_proj"]))
    if random_state is not None:
        load_lora_state(model, random_state(model))
    return model.eval()


def alone(model, examples):
    """Summed loss of each sequence, from a plain call of transformers with all its logits."""
    losses = []
    for example in examples:
        logits = model(input_ids=example.ids[None]).logits[0].float()
        positions = example.supervised.nonzero().squeeze(1)
        losses.append(cross_entropy(logits[positions - 1], example.ids[positions], reduction="sum"))
    return torch.stack(losses)


def soft_capped(attention_name):
    sizes = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    config = hf.Gemma2Config(**sizes, **heads, attn_logit_softcapping=0.5, initializer_range=0.2)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = hf.Gemma2ForCausalLM(config).eval().requires_grad_(False)
    model.config._attn_implementation = attention_name
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("qwen", "packed"), ("llama", "packed"), ("gpt2", "packed"),
        ("bloom", "padded"), ("mamba", "padded"), ("stablelm", "padded"),
    ],
)  # fmt: skip
def test_layout_of_each_kind(micro_model, random_state, kind, layout, dtype):
    module = LoraClientModule(adapted(micro_model(kind), kind, random_state)).to(dtype)
    module.choose_layout()
    assert module.layout == layout
    assert (module.model.config._attn_implementation == attention.ATTENTION_NAME) == (layout == "packed")


def test_a_slower_layout_is_logged_with_its_reason(micro_model, log_messages):
    LoraClientModule(adapted(micro_model("bloom"), "bloom")).choose_layout()
    LoraClientModule(adapted(micro_model("qwen"), "qwen")).choose_layout()
    assert log_messages == [
        "INFO BloomForCausalLM trains padded, which is slower (packed: its attention cannot be replaced)"
    ]


@pytest.mark.parametrize("layout", ["packed", "padded", "single"])
@pytest.mark.parametrize("kind", ["qwen", "gpt2", "bloom", "mamba"])
def test_losses_and_gradients_are_those_of_plain_transformers(micro_model, random_state, make_examples, kind, layout):
    if kind in ("bloom", "mamba") and layout == "packed":
        pytest.skip("does not pack")
    plain = adapted(micro_model(kind), kind, random_state)
    module = LoraClientModule(adapted(micro_model(kind), kind, random_state)).eval()
    module.layout = layout
    if layout != "packed":
        attention.restore_attention(module.model.get_base_model())
    examples = make_examples(5, seed=3)
    sums = module(pack([examples[:2], [], examples[2:]]))
    expected = alone(plain, examples)
    torch.testing.assert_close(
        sums.loss, torch.stack([expected[:2].sum(), torch.tensor(0.0), expected[2:].sum()]), atol=0, rtol=1e-5
    )
    sums.loss.sum().backward()
    expected.sum().backward()
    gradients = {n: p.grad for n, p in module.model.named_parameters() if p.requires_grad}
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "single"])
def test_a_cohort_gives_each_client_its_own_adapter_in_every_layout(micro_model, random_state, make_examples, layout):
    plain = adapted(micro_model("bloom"), "bloom")
    states = [random_state(plain, seed) for seed in (1, 2)]
    clients = [make_examples(2, seed=1), make_examples(3, seed=2)]
    module = LoraClientModule(adapted(micro_model("bloom"), "bloom")).eval()
    module.layout = layout
    cohort, losses = LoraCohort(module.model), torch.zeros(2)
    cohort.load(states, "cpu")
    with torch.no_grad(), cohort.attached():
        for row in module.parts(pack(clients)):
            cohort.set_segments(row.client_tokens, lengths=row.lengths)
            losses += module(row).loss
    for state, examples, loss in zip(states, clients, losses, strict=True):
        load_lora_state(plain, state)
        torch.testing.assert_close(loss, alone(plain, examples).sum().detach(), atol=0, rtol=1e-5)


def test_soft_caps_are_never_dropped(random_state, make_examples, monkeypatch):
    """Were the keyword ignored, packed rows would train another model: the caps of this one are far from 0."""
    plain = adapted(soft_capped("eager"), "gemma2", random_state)
    examples = make_examples(4, seed=5)
    module = LoraClientModule(adapted(soft_capped("eager"), "gemma2", random_state))
    monkeypatch.setattr(attention, "ORIGINAL", "eager")  # as if transformers' sdpa took the caps
    module.choose_layout()
    assert module.layout == "padded"
    module.eval()
    torch.testing.assert_close(module(pack([[e] for e in examples])).loss, alone(plain, examples), atol=0, rtol=1e-5)


def test_the_check_compares_with_the_attention_that_transformers_gave(micro_model, monkeypatch):
    """An attention that drops the window passes a comparison with itself, and one with rows shorter than the window."""
    config = hf.MistralConfig(**{**micro_model("llama").config.to_dict(), "sliding_window": 20})
    torch.manual_seed(0)
    module = LoraClientModule(adapted(hf.MistralForCausalLM(config).eval().requires_grad_(False), "mistral"))
    monkeypatch.setattr(attention, "_window_mask", lambda length, window, device: None)
    module.choose_layout()
    assert module.layout == "padded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_notices_sequences_that_see_each_other(micro_model, monkeypatch, dtype):
    module = LoraClientModule(adapted(micro_model("qwen"), "qwen")).to(dtype)
    packed_kwargs = row_layout.packed_kwargs
    mixed = lambda layout: packed_kwargs(PackedLayout.from_lengths([sum(layout.lengths)], layout.starts.device))  # noqa: E731
    monkeypatch.setattr(row_layout, "packed_kwargs", mixed)
    module.choose_layout()
    assert module.layout == "padded"


def test_sequences_go_one_by_one_where_the_rows_of_a_batch_depend_on_each_other(micro_model, log_messages):
    base = micro_model("bloom")
    shift = torch.linspace(-3, 3, 32)
    words = base.transformer.word_embeddings
    words.register_forward_hook(lambda _, inputs, output: output + shift * (len(inputs[0]) - 1))
    module = LoraClientModule(adapted(base, "bloom"))
    module.choose_layout()
    assert module.layout == "single"
    assert "trains one record at a time" in log_messages[0]


def test_a_model_that_no_layout_fits_is_refused(micro_model):
    module = LoraClientModule(adapted(micro_model("bloom"), "bloom"))
    calls = []

    def disturb(_, inputs, output):  # all but the calls with one sequence alone: three, and two about causality
        calls.append(inputs)
        return output * (2 if len(calls) > 5 else 1)

    module.model.get_output_embeddings().register_forward_hook(disturb)
    with pytest.raises(InputError, match="expected the loss of each sequence alone"):
        module.choose_layout()


def test_a_model_that_sees_the_answer_is_refused():
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = hf.BertConfig(**sizes, num_attention_heads=4, initializer_range=0.2)
    torch.manual_seed(0)
    module = LoraClientModule(create_lora_model(hf.BertLMHeadModel(config).eval(), 4, 8, 0.0, ["query"]))
    with pytest.raises(InputError, match="expected a causal language model, got BertLMHeadModel"):
        module.choose_layout()


def test_weights_that_are_not_finite_are_named_as_such(micro_model):
    base = micro_model("qwen")
    base.model.layers[0].mlp.down_proj.weight.data[0] = float("nan")
    with pytest.raises(InputError, match=r"expected finite logits, got NaN or infinity from Qwen"):
        LoraClientModule(adapted(base, "qwen")).choose_layout()
