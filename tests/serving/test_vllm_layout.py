"""What vLLM's ``--lora-modules`` wants of an adapter's folder.

As ``parse_fine_tuned_lora_name`` and ``PEFTHelper`` of vllm/lora check it.
"""

import json

import pytest
import torch
from safetensors import safe_open

from fl_lightning.modeling.lora import create_lora_model, export_lora_adapter


@pytest.fixture
def folder(micro_model, tmp_path):
    return export_lora_adapter(create_lora_model(micro_model("qwen"), r=8), tmp_path / "hr")


def test_the_config_has_what_is_read_and_nothing_that_is_refused(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["r"] in (8, 16, 32, 64, 128, 256)  # --max-lora-rank
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["bias"] == "none"
    assert not config.get("use_dora")
    assert not config.get("modules_to_save")


def test_every_tensor_is_named_as_it_is_parsed(folder):
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layers = set()
    for name, tensor in shapes.items():
        assert name.startswith("base_model.model.")
        *module, factor, last = name.removeprefix("base_model.model.").split(".")
        assert last == "weight"
        assert factor in ("lora_A", "lora_B")
        assert tensor.shape[0 if factor == "lora_A" else 1] == 8
        assert tensor.dtype == torch.float32
        layers.add(".".join(module))
    assert layers == {f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")}


def test_nothing_else_lies_beside_them(folder):
    assert {p.name for p in folder.iterdir()} <= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
