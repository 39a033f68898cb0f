"""Adapters made by PEFT in all ways: read as PEFT itself reads them, or refused with the key that is not understood."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fl_lightning.errors import InputError
from fl_lightning.modeling.generation.adapter_bank import AdapterBank
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state, create_lora_model
from fl_lightning.modeling.scaled_adapter import read_adapter

IDS = torch.arange(5, 25).view(2, 10)
LAYERS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture
def peft_adapter(micro_model, tmp_path):
    """Factory of adapters that PEFT alone has made and written; no tensor is zero."""

    def make(kind="qwen", edit=None, **config):
        config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": list(LAYERS), "r": 4, **config})
        model = get_peft_model(micro_model(kind), config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(str(tmp_path / "peft"))
        if edit:
            path = tmp_path / "peft" / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
        return tmp_path / "peft"

    return make


@torch.no_grad()
def logits_of_ours(base, folder, target_modules):
    model = create_lora_model(base, 2, 3, target_modules=target_modules).eval()
    adapter = read_adapter(folder, collect_lora_state(model), adapter_scaling(model))
    bank = AdapterBank(model)
    with bank.attached():
        bank.set_rows([bank.prepare(adapter.state, adapter.relative_scaling)] * 2)
        return model(IDS).logits


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"v_proj": 7}, "lora_alpha": 5},
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 32, "down_proj": 2}},
        {"rank_pattern": {"^model.layers.1.*": 2}, "alpha_pattern": {"q_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj"]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"exclude_modules": ["model.layers.0.mlp.down_proj"]},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
        {"edit": {"merge_weights": False, "a_new_key": None, "modules_to_save": [], "rank_pattern": {}}},
    ],
    ids=lambda config: ",".join(config),
)
def test_an_adapter_of_peft_gives_the_logits_that_peft_gives(micro_model, peft_adapter, config):
    folder = peft_adapter(**config)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(micro_model("qwen"), str(folder)).eval()(IDS).logits
    assert float((expected - micro_model("qwen")(IDS).logits).abs().max()) > 0.1  # the adapter does something
    torch.testing.assert_close(logits_of_ours(micro_model("qwen"), folder, LAYERS), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_conv1d_is_read_whatever_the_config_says_of_fan_in(micro_model, peft_adapter, fan_in_fan_out):
    folder = peft_adapter(kind="gpt2", target_modules=["c_attn"], edit={"fan_in_fan_out": fan_in_fan_out})
    with torch.no_grad():
        expected = PeftModel.from_pretrained(micro_model("gpt2"), str(folder)).eval()(IDS).logits
    torch.testing.assert_close(logits_of_ours(micro_model("gpt2"), folder, ["c_attn"]), expected, rtol=1e-5, atol=2e-5)


REFUSED = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "layer_replication": {"layer_replication": [[0, 2], [0, 2]]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [7]},
    "a_new_key": {"edit": {"a_new_key": 1}},
    "peft_type LORA": {"edit": {"peft_type": "LOHA"}},
    "lora_alpha: .* got 0": {"edit": {"lora_alpha": 0}},
    "lora_alpha: .* got 'much'": {"edit": {"lora_alpha": "much"}},
    "r: .* got 5": {"edit": {"r": 5}},
    "r: .* got None": {"edit": {"r": None}},
    "target_modules": {"edit": {"target_modules": ["k_proj"]}},
    "the layers that": {"edit": {"target_modules": ["q_proj"]}},
    "tensors missing": {"target_modules": ["q_proj"], "edit": {"target_modules": ["q_proj", "v_proj"]}},
    "lora.target_modules": {"target_modules": ["q_proj", "k_proj"]},
    "target_modules: expected names": {"edit": {"target_modules": None}},
    "PEFT refuses it .*unterminated": {"edit": {"target_modules": "(q_proj"}},
    "PEFT refuses it .*attribute": {"edit": {"rank_pattern": [1]}},
    "PEFT refuses it .*nothing to repeat": {"edit": {"alpha_pattern": {"*": 1}}},
}


@pytest.mark.parametrize(("message", "config"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_plain_lora_of_these_layers_is_refused_by_its_key(micro_model, peft_adapter, message, config):
    folder = peft_adapter(**config)
    with pytest.raises(InputError, match=message) as error:
        logits_of_ours(micro_model("qwen"), folder, LAYERS)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_scale_is_that_of_the_config_whatever_the_models(micro_model, peft_adapter):
    model = create_lora_model(micro_model("qwen"), 2, 3, target_modules=LAYERS)
    adapter = read_adapter(peft_adapter(lora_alpha=8), collect_lora_state(model), adapter_scaling(model))
    assert adapter.relative_scaling == pytest.approx((8 / 4) / (3 / 2))
    assert {tensor.shape[0] for name, tensor in adapter.state.items() if "lora_A" in name} == {4}
