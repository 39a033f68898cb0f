from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from fl_lightning import bundled
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import context_length, load_base_model, load_tokenizer


def load(name, **arguments):
    return load_base_model(ModelConfig(name_or_path=str(name), **arguments), dtype=torch.float32)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(bundled.resolve("bundled:tiny_base"), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_base_is_frozen_and_in_eval_mode(loaded_tiny_base):
    model, _ = loaded_tiny_base
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_dtype_asked_for(dtype):
    model, _ = load_base_model(ModelConfig(), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_tokenizer_has_pad_and_end_tokens(loaded_tiny_base):
    _, tokenizer = loaded_tiny_base
    assert tokenizer.pad_token is not None
    assert tokenizer.eos_token_id == 2


def test_tokenizer_without_pad_token_gets_the_end_token(model_folder):
    path = model_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "pad_token": None}))
    _, tokenizer = load(model_folder)
    assert tokenizer.pad_token == tokenizer.eos_token


def test_local_folder_gives_the_same_weights_as_the_bundled_name(model_folder, loaded_tiny_base):
    model, _ = load(model_folder)
    wanted = loaded_tiny_base[0].state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_unknown_model_offline_names_what_was_tried(name):
    with pytest.raises(InputError) as caught:
        load(name)
    message = str(caught.value)
    assert "model.name_or_path" in message
    assert name in message
    assert "Hub cache" in message
    assert "HF_HUB_OFFLINE=1" in message
    assert "\n" not in message


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load(tmp_path)


def test_missing_gguf_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load(tmp_path / "model.gguf")


def test_unknown_bundled_name_is_refused_with_a_hint():
    with pytest.raises(InputError, match="did you mean 'tiny_base'"):
        load("bundled:tiny_bas")


def test_broken_config_is_an_input_error(model_folder):
    (model_folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(model_folder)


def test_cut_weights_are_an_input_error(model_folder):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(model_folder)


def test_folder_without_weights_is_an_input_error(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load(model_folder)


def test_tokenizer_alone_is_the_one_of_the_base(loaded_tiny_base, model_folder):
    (model_folder / "model.safetensors").unlink()
    alone = load_tokenizer(ModelConfig(name_or_path=str(model_folder)))
    assert alone("Hello there")["input_ids"] == loaded_tiny_base[1]("Hello there")["input_ids"]
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="the tokenizer has no vocabulary"):
        load_tokenizer(ModelConfig(name_or_path=str(model_folder)))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "qwen2", "max_position_embeddings": 96}, 96),
        ({"model_type": "gpt2", "n_positions": 48}, 48),
        ({"model_type": "bloom"}, None),  # ALiBi: no positions to run out of
        ({"model_type": "mamba"}, None),
    ],
)
def test_context_is_what_the_config_has_positions_for(tmp_path, config, length):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(ModelConfig(name_or_path=str(tmp_path))) == length


def test_context_of_the_bundled_base_is_that_of_its_model(loaded_tiny_base):
    assert context_length(ModelConfig()) == loaded_tiny_base[0].config.max_position_embeddings == 2048


def test_context_of_a_model_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not found; tried"):
        context_length(ModelConfig(name_or_path="nobody/no-such-model"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        context_length(ModelConfig(name_or_path=str(tmp_path)))


def test_an_adapter_beside_the_weights_is_refused_and_not_made_part_of_the_base(model_folder):
    model, _ = load(model_folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(model_folder))
    with pytest.raises(InputError, match="comes with an adapter"):
        load(model_folder)


@pytest.mark.parametrize("text", ["{", '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, "</s>"]}'])
def test_a_broken_generation_config_is_refused(model_folder, text):
    (model_folder / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        load(model_folder)


def test_weights_that_the_model_has_no_place_for_are_named_in_a_warning(model_folder, log_messages):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.bias"] = torch.ones(4)
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    load(model_folder)
    (message,) = log_messages
    assert message.startswith("WARNING")
    assert message.endswith("left out: 1, first model.layers.0.self_attn.o_proj.bias")
