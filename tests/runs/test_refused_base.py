"""A base that cannot be trained is refused with exit code 2 and one line, before anything is written."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import transformers as hf

from fl_lightning.cli import main

SIZES = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
REFUSED = {
    "not causal": (
        hf.BertConfig(**SIZES, num_attention_heads=4, initializer_range=0.2),
        "query",
        "expected a causal language model",
    ),
    "tensor of experts": (hf.MixtralConfig(**SIZES, **EXPERTS, num_attention_heads=4), "gate_up_proj", "tensor"),
    "router": (hf.MixtralConfig(**SIZES, **EXPERTS, num_attention_heads=4), "gate", "is of class MixtralTopKRouter"),
    "head": (hf.GPTNeoXConfig(**SIZES, num_attention_heads=4), "lm_head", "output head"),
    "embedding": (hf.LlamaConfig(**SIZES, num_attention_heads=4), "embed_tokens", "embedding"),
    "convolution": (hf.MambaConfig(**SIZES, state_size=4), "conv1d", "is of class Conv1d"),
    "part of a mixer that runs fused": (hf.MambaConfig(**SIZES, state_size=4), "out_proj", "out_proj"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_base_or_layer_is_refused_in_one_line(case, tokenizer, tmp_path, capsys):
    config, layer, reason = REFUSED[case]
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    command = ["fit", "--model.name_or_path", str(tmp_path / "base"), "--target-modules", layer, "--max-records", "2"]
    code = main([*command, "--clients-per-dept", "1", "--output", str(tmp_path / "runs")])
    message = capsys.readouterr().err.strip()
    assert code == 2, message
    assert reason in message.splitlines()[-1]
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_a_quantization_config_over_plain_weights_is_refused_in_one_line(tokenizer, tmp_path, capsys):
    plain = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_attention_heads=4))
    plain.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    plain.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    code = main(["fit", "--model.name_or_path", str(tmp_path / "base"), "--output", str(tmp_path / "runs")])
    message = capsys.readouterr().err.strip()
    assert code == 2, message
    assert "quantization_config" in message.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
