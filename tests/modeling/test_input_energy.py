"""The energy of inputs in the rows of ΔA, against inputs that are read off layer by layer."""

import copy

import numpy as np
import pytest
import torch

from fl_lightning.modeling.input_energy import input_energy
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, load_lora_state


@pytest.fixture
def model(micro_qwen):
    return create_lora_model(copy.deepcopy(micro_qwen), 2, 4, 0.0, ["q_proj", "v_proj"])


def test_it_is_the_share_of_the_inputs_that_the_rows_see(model, make_examples, random_state):
    state, examples = random_state(model, 3), make_examples(4)
    layers = {n.removesuffix(".lora_A.weight"): t for n, t in state.items() if "lora_A" in n}
    with torch.no_grad():
        expected = []
        for example in examples:  # the base's inputs of q_proj and v_proj are the normalized hidden states
            hidden = model.get_base_model()(example.ids[None], output_hidden_states=True).hidden_states
            shares = []
            for layer, change in layers.items():
                block = model.get_base_model().model.layers[int(layer.split("layers.")[1].split(".")[0])]
                h = block.input_layernorm(hidden[int(layer.split("layers.")[1].split(".")[0])])[0]
                share = (h @ change.T).square().sum(-1) / (change.norm() ** 2 * h.square().sum(-1))
                shares.append(share[:-1][example.supervised[1:]].mean())
            expected.append(float(torch.stack(shares).mean()))
    assert input_energy(model, state, examples) == pytest.approx(expected, rel=1e-5)


def test_the_adapter_on_the_model_and_the_size_of_the_change_do_not_count(model, make_examples, random_state):
    state, examples = random_state(model, 3), make_examples(3)
    first = input_energy(model, state, examples)
    load_lora_state(model, random_state(model, 8))
    assert input_energy(model, {n: 5 * t for n, t in state.items()}, examples) == pytest.approx(first, rel=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_that_has_not_moved_tells_nothing(model, make_examples):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in collect_lora_state(model).items()}
    assert np.array_equal(input_energy(model, zeros, make_examples(3)), np.zeros(3))


def test_a_row_along_an_input_sees_it(model, make_examples):
    examples = make_examples(6)
    layer = next(n for n in collect_lora_state(model) if "lora_A" in n)
    with torch.no_grad():
        block = model.get_base_model().model.layers[0]
        inputs = block.input_layernorm(model.get_base_model().model.embed_tokens(examples[2].ids))
        mean = inputs[:-1][examples[2].supervised[1:]].mean(0, keepdim=True)
    energies = input_energy(model, {layer: torch.cat([mean, torch.zeros_like(mean)])}, examples)
    assert int(energies.argmax()) == 2
