import dataclasses

import pytest
import torch

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.training import memory_estimate
from fl_lightning.training.memory_estimate import BaseSizes, base_sizes, estimate_memory

BASE = BaseSizes(1000, 800, 10, 8, layers=3, hidden=4, key_value=2, mlp=8, vocabulary=16)


def estimate(*argv, device="cpu", precision="fp32", clients=4, base=BASE):
    return estimate_memory(parse_config(list(argv)), base, device=device, precision=precision, num_clients=clients)


def test_parts_are_worked_by_hand():
    argv = ["--batch-size", "2", "--data.max_length", "10", "--training.clients_at_once", "3"]
    result = estimate(*argv)
    assert (result.step_tokens, result.clients_at_once) == (60, 3)
    assert result.base == 4000
    assert result.adapters == 3 * 10 * 16
    # a layer: 4 · 4 + 2 · 2 + 3 · 8 = 44 numbers a token, three of them; LoRA's inputs 8, with a byte each of the mask
    assert result.activations == 60 * (4 * 3 * 44 + (4 + 1) * 8)
    assert result.head == 30 * (16 * 8 + 4 * 8)
    assert result.total == sum(result.as_json()[k] for k in ("base", "adapters", "activations", "head", "margin"))


def test_large_vocabulary_costs_a_chunk_of_logits_and_no_more():
    def head(vocabulary, device="cpu"):
        base = dataclasses.replace(BASE, vocabulary=vocabulary)
        return estimate("--batch-size", "64", "--data.max_length", "128", base=base, device=device).head

    assert head(152_000) == head(1_520_000) == 8 * 2**24 + 64 * 64 * 4 * 8
    assert head(152_000, "cuda") == 8 * 2**27 + 8192 * 4 * 8  # half of 16,384 tokens


def test_half_precision_halves_weights_on_a_gpu_only():
    assert estimate(device="cuda", precision="bf16").base == 2000
    assert estimate(device="cpu", precision="bf16").base == 4000


def test_four_bits_are_half_a_byte_and_a_scale_for_each_64():
    result = estimate("--load-in-4bit", device="cuda", precision="bf16")
    assert result.base == 200 * 2 + 400 + 50


def test_auto_goes_by_the_devices_step_and_one_client_always_fits():
    assert estimate("--data.max_length", "1024").step_tokens == 4 * 1024
    few = estimate("--data.max_length", "8", clients=2)
    assert (few.clients_at_once, few.step_tokens) == (2, 2 * 4 * 8)
    assert estimate("--data.max_length", "512", device="cuda", clients=500).step_tokens == 16384


def test_auto_is_halved_on_a_card_with_less_memory():
    base = base_sizes(parse_config(["--model.name_or_path", "Qwen/Qwen1.5-1.8B"]))

    def on_card(gib, *argv):
        config = parse_config(["--data.max_length", "512", *argv])
        arguments = {"device": "cuda", "precision": "bf16", "num_clients": 16, "card_bytes": gib * 2**30}
        return estimate_memory(config, base, **arguments)

    assert [on_card(gib).step_tokens for gib in (80, 24, 16)] == [16384, 8192, 4096]
    assert all(on_card(gib).total < gib * 2**30 for gib in (80, 24, 16))
    assert on_card(80, "--fabric.memory_limit_mb", "16384") == on_card(16)
    assert on_card(8, "--load-in-4bit").step_tokens == 2048
    assert on_card(8, "--load-in-4bit", "--training.gradient_checkpointing", "true").step_tokens == 16384


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer_at_a_time():
    # 3 layers of 44 numbers and LoRA's 5 bytes for 8 inputs: 568 bytes; a third of that, and 3 inputs of 4 numbers
    assert memory_estimate.token_bytes(BASE, 4) == 568
    assert memory_estimate.token_bytes(BASE, 4, recompute=True) == 3 * 4 * 4 + 568 // 3


def test_sizes_are_those_of_the_loaded_base(loaded_tiny_base):
    result = base_sizes(RunConfig())
    model = loaded_tiny_base[0]
    assert result.parameters == sum(p.numel() for p in model.parameters())
    layers = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert result.linear == sum(m.weight.numel() for m in layers)


def test_adapter_is_as_large_as_pefts(tiny_base):
    from fl_lightning.modeling.lora import collect_lora_state, create_lora_model

    state = collect_lora_state(create_lora_model(tiny_base[0], r=4, target_modules=["q_proj", "k_proj"]))
    result = base_sizes(parse_config(["--lora-r", "4", "--target-modules", "q_proj", "k_proj"]))
    assert result.adapter == sum(tensor.numel() for tensor in state.values())


def test_qwen_is_known_without_the_hub():
    result = base_sizes(parse_config(["--model.name_or_path", "Qwen/Qwen1.5-1.8B"]))
    assert result.parameters == 1_836_828_672  # as its model card says: 1.8B
    assert result.linear == 24 * (4 * 2048**2 + 3 * 2048 * 5504)
    assert result.adapter == 24 * 2 * 8 * 4096


def test_unknown_base_and_layers_are_bad_input():
    with pytest.raises(InputError, match="got nobody/nothing, whose config.json is not on this machine"):
        base_sizes(parse_config(["--model.name_or_path", "nobody/nothing"]))
    with pytest.raises(InputError, match="lora.target_modules: 'q' matches no module"):
        base_sizes(parse_config(["--target-modules", "q"]))


def test_free_memory_is_some_of_the_machines():
    free = memory_estimate.free_memory("cpu")
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]])
def test_estimate_of_a_step_is_what_autograd_keeps(tiny_base, make_examples, targets):
    from fl_lightning.data.packing import pack
    from fl_lightning.modeling.cohort import LoraCohort
    from fl_lightning.modeling.dropout import dropout_stream
    from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
    from fl_lightning.module import LoraClientModule

    model = create_lora_model(tiny_base[0], r=8, lora_dropout=0.05, target_modules=targets)
    module, cohort = LoraClientModule(model), LoraCohort(model)
    cohort.load([collect_lora_state(model)], "cpu")
    row = pack([make_examples(4, low=128, high=128, vocabulary=1000)])
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *cohort.parameters()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with cohort.attached(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cohort.set_segments(row.client_tokens, [dropout_stream(0)])
        loss = module(row).loss.sum()
    measured = sum(storage.nbytes() for storage in kept.values())
    argv = ["--batch-size", "4", "--data.max_length", "128", "--training.clients_at_once", "1"]
    config = parse_config([*argv, "--target-modules", *targets])
    result = estimate_memory(config, base_sizes(config), device="cpu", precision="fp32", num_clients=1)
    loss.backward()
    # Of the head autograd keeps the logarithms only; logits come and go.
    head = sum(row.client_targets) * 4096 * 4
    assert 0.9 < (result.activations + head) / measured < 1.15
