import dataclasses

import pytest
import torch

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.generation.decoding import Answer
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.serving.engine import load_answering


@pytest.fixture(scope="module")
def answering():
    return load_answering(RunConfig())


def test_a_folder_becomes_an_adapter_that_answers(answering, tmp_path, random_state):
    state = random_state(answering.model, 0)
    export_lora_adapter(answering.model, tmp_path / "hr", state)
    adapter = answering.read(tmp_path / "hr")
    answer = Answer([5, 6, 7], adapter, 4, Sampler(Sampling(temperature=0)))
    with answering.bank.attached():
        decoder = answering.decoder()
        decoder.add([answer])
        while decoder.answers:
            decoder.step()
    assert answer.finish is not None
    scaled = state["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] * 2  # lora_alpha 16 over r 8
    torch.testing.assert_close(adapter.factors["base_model.model.model.layers.0.self_attn.q_proj"][0], scaled)


def test_the_fingerprint_is_of_the_tensors(answering, tmp_path, random_state):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        export_lora_adapter(answering.model, tmp_path / name, random_state(answering.model, seed))
    found = {name: answering.read(tmp_path / name).fingerprint for name in ("a", "again", "b")}
    assert found["a"] == found["again"] != found["b"]
    assert found["a"].startswith("fp_")


def test_an_adapter_of_another_base_is_refused(answering, tmp_path, micro_model):
    from fl_lightning.modeling.lora import create_lora_model

    export_lora_adapter(create_lora_model(micro_model("llama")), tmp_path / "x")
    with pytest.raises(InputError):
        answering.read(tmp_path / "x")


def test_a_model_without_keys_and_values_is_refused(micro_model, tokenizer, tmp_path):
    micro_model("mamba").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = RunConfig()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name_or_path=str(tmp_path)))
    with pytest.raises(InputError, match="MambaForCausalLM, a recurrent model"):
        load_answering(config)
