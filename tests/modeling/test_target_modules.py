import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import create_lora_model, lora_layers
from fl_lightning.modeling.target_modules import expand_targets


def mixture():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8}
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(vocab_size=32, num_key_value_heads=1, **sizes, **experts))


@pytest.mark.parametrize("kind", ["qwen", "gpt2", "bloom"])
def test_all_linear_is_what_peft_takes_for_it(micro_model, kind):
    reference = get_peft_model(micro_model(kind), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    model = create_lora_model(micro_model(kind), target_modules=["all-linear"])
    assert set(lora_layers(model)) == set(lora_layers(reference))


def test_a_regular_expression_is_what_peft_takes_for_it(micro_qwen, micro_model):
    pattern = r".*\.1\.self_attn\.[qk]_proj"
    reference = get_peft_model(micro_model("qwen"), LoraConfig(target_modules=pattern, task_type="CAUSAL_LM"))
    model = create_lora_model(micro_qwen, target_modules=[pattern])
    assert set(lora_layers(model)) == set(lora_layers(reference))
    assert len(lora_layers(model)) == 2


def test_names_stay_as_they_are(micro_qwen):
    assert expand_targets(micro_qwen, ["v_proj", "self_attn.q_proj"]) == ["self_attn.q_proj", "v_proj"]
    layers = expand_targets(micro_qwen, ["o_proj", "all-linear"])
    assert "o_proj" in layers
    assert "model.layers.1.mlp.down_proj" in layers
    assert not any("lm_head" in layer for layer in layers)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm_head", "lm_head is the output head"),
        ("embed_tokens", "model.embed_tokens is an embedding"),
        ("q_prj", "'q_prj' matches no module of the base model; did you mean 'q_proj'?"),
        (r".*\.gate_up_proj", "matches no linear layer"),
        ("(", "is not a valid regular expression"),
        ("gate_up_proj", "'gate_up_proj' is a tensor and no layer, such as the weights of all experts"),
    ],
)
def test_what_cannot_get_an_adapter_is_named(target, message):
    with pytest.raises(InputError, match=r"^lora.target_modules: ") as caught:
        create_lora_model(mixture(), target_modules=[target])
    assert message in str(caught.value)
    assert "expected" in str(caught.value) or "valid" in str(caught.value)


def test_a_router_learns_beside_attention(micro_qwen):
    from fl_lightning.data.packing import pack
    from fl_lightning.data.tokenization import Example
    from fl_lightning.modeling.cohort import LoraCohort
    from fl_lightning.modeling.lora import collect_lora_state
    from fl_lightning.module import LoraClientModule

    model = create_lora_model(mixture().eval(), target_modules=["all-linear"])
    module = LoraClientModule(model).eval()
    module.choose_layout()
    draw = torch.Generator().manual_seed(0)
    states = [
        {name: torch.randn(t.shape, generator=draw) * 0.1 for name, t in collect_lora_state(model).items()}
        for _ in range(2)
    ]
    examples = [Example(torch.randint(32, (n,), generator=draw), torch.arange(n) > 0) for n in (5, 9)]
    cohort = LoraCohort(model)
    losses = []
    for chosen in ([0, 1], [0], [1]):
        cohort.load([states[i] for i in chosen], "cpu")
        row = pack([[examples[i]] for i in chosen])
        with torch.no_grad(), cohort.attached():
            cohort.set_segments(row.client_tokens, lengths=row.lengths)
            losses.append(module(row).loss)
    torch.testing.assert_close(losses[0], torch.cat(losses[1:]), atol=1e-5, rtol=1e-5)
