from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from peft import PeftConfig, PeftModel

from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import (
    collect_lora_parameter_names,
    collect_lora_state,
    create_lora_model,
    export_lora_adapter,
    load_adapter_model,
    load_lora_state,
    lora_layers,
    read_lora_adapter,
)

IDS = torch.arange(5, 15)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_same_seed_gives_the_same_start_whatever_was_drawn_before(micro_model):
    first = collect_lora_state(create_lora_model(micro_model("qwen"), seed=3))
    torch.rand(5)
    second = collect_lora_state(create_lora_model(micro_model("qwen"), seed=3))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_start(micro_model):
    first, second = (collect_lora_state(create_lora_model(micro_model("qwen"), seed=s)) for s in (1, 2))
    assert all(not torch.equal(first[n], second[n]) for n in first if "lora_A" in n)


def test_creating_leaves_the_global_generator_alone(micro_qwen):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    create_lora_model(micro_qwen, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_is_kaiming_uniform_and_b_is_zero(micro_qwen):
    state = collect_lora_state(create_lora_model(micro_qwen, r=4))
    bound = math.sqrt(1 / 32)
    for name, tensor in state.items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert 0.5 * bound < tensor.abs().max() <= bound


def test_fresh_adapter_does_not_change_the_base(micro_model):
    assert torch.equal(logits(create_lora_model(micro_model("qwen"))), logits(micro_model("qwen")))


def test_only_lora_factors_require_gradients(micro_qwen):
    model = create_lora_model(micro_qwen)
    assert all(("lora_A" in n or "lora_B" in n) == p.requires_grad for n, p in model.named_parameters())


def test_factor_shapes_are_r_by_in_and_out_by_r(micro_qwen):
    state = collect_lora_state(create_lora_model(micro_qwen, r=4, target_modules=["v_proj"]))
    shapes = {name.split("v_proj.")[1]: tuple(t.shape) for name, t in state.items()}
    assert shapes == {"lora_A.weight": (4, 32), "lora_B.weight": (16, 4)}


def test_factor_shapes_of_a_conv1d_layer_are_r_by_in_and_out_by_r(micro_model):
    state = collect_lora_state(create_lora_model(micro_model("gpt2"), r=4, target_modules=["c_attn"]))
    shapes = {name.split("c_attn.")[1]: tuple(t.shape) for name, t in state.items()}
    assert shapes == {"lora_A.weight": (4, 32), "lora_B.weight": (96, 4)}


def test_unknown_target_module_is_refused_with_a_hint(micro_qwen):
    with pytest.raises(InputError, match=r"lora\.target_modules: 'q_prj' .*did you mean 'q_proj'"):
        create_lora_model(micro_qwen, target_modules=["q_prj"])


def test_one_unknown_target_among_known_ones_is_refused(micro_qwen):
    with pytest.raises(InputError, match="'query'"):
        create_lora_model(micro_qwen, target_modules=["q_proj", "query"])


def test_target_that_is_not_a_linear_layer_is_refused(micro_qwen):
    with pytest.raises(InputError, match=r"lora\.target_modules"):
        create_lora_model(micro_qwen, target_modules=["mlp"])


def test_parameter_names_are_those_of_the_state(micro_qwen):
    model = create_lora_model(micro_qwen)
    names = collect_lora_parameter_names(model)
    assert names == sorted(names) == list(collect_lora_state(model))
    assert len(names) == 8


def test_layer_names_lead_to_the_state_names(micro_qwen):
    model = create_lora_model(micro_qwen)
    names = {f"{prefix}.lora_{f}.weight" for prefix in lora_layers(model) for f in "AB"}
    assert names == set(collect_lora_parameter_names(model))


def test_state_is_an_fp32_copy_that_shares_no_memory(micro_qwen, random_state):
    model = create_lora_model(micro_qwen)
    before = collect_lora_state(model)
    kept = copy.deepcopy(before)
    load_lora_state(model, random_state(model))
    assert all(torch.equal(before[n], kept[n]) and before[n].dtype == torch.float32 for n in before)
    assert not any(t.requires_grad for t in before.values())


def test_loaded_state_comes_back_unchanged(micro_qwen, random_state):
    model = create_lora_model(micro_qwen)
    state = random_state(model)
    load_lora_state(model, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in collect_lora_state(model).items())


def test_loading_keeps_the_parameters_in_place(micro_qwen, random_state):
    model = create_lora_model(micro_qwen)
    places = {n: p.data_ptr() for n, p in model.named_parameters()}
    load_lora_state(model, random_state(model))
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == places


def broken(state, how):
    name = next(iter(state))
    if how == "missing":
        del state[name]
    elif how == "extra":
        state["other.lora_A.weight"] = torch.zeros(1)
    elif how == "shape":
        state[name] = state[name].T.contiguous()
    else:
        state[name] = torch.full_like(state[name], float(how))
    return state


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "nan", "inf"])
def test_state_that_does_not_fit_is_refused_and_nothing_is_changed(micro_qwen, random_state, how):
    model = create_lora_model(micro_qwen)
    before = collect_lora_state(model)
    with pytest.raises(ValueError, match="does not fit"):
        load_lora_state(model, broken(random_state(model), how))
    assert all(torch.equal(tensor, before[name]) for name, tensor in collect_lora_state(model).items())


@pytest.mark.parametrize(("kind", "target"), [("qwen", "v_proj"), ("gpt2", "c_attn")])
def test_exported_adapter_opens_with_peft_and_gives_equal_logits(micro_model, random_state, tmp_path, kind, target):
    model = create_lora_model(micro_model(kind), target_modules=[target])
    load_lora_state(model, random_state(model))
    export_lora_adapter(model, tmp_path / "hr")
    opened = PeftModel.from_pretrained(micro_model(kind), str(tmp_path / "hr"))
    assert torch.equal(logits(opened), logits(model))
    assert not torch.equal(logits(opened), logits(micro_model(kind)))


def test_export_of_a_given_state_writes_that_state_and_leaves_the_model(micro_qwen, random_state, tmp_path):
    model = create_lora_model(micro_qwen)
    before, state = collect_lora_state(model), random_state(model)
    folder = export_lora_adapter(model, tmp_path / "hr", state)
    written = read_lora_adapter(folder)
    assert all(torch.equal(written[n], state[n]) for n in state)
    assert all(torch.equal(t, before[n]) for n, t in collect_lora_state(model).items())


def test_export_writes_config_and_safetensors_only(micro_qwen, tmp_path):
    folder = export_lora_adapter(create_lora_model(micro_qwen, r=4, lora_alpha=12), tmp_path / "hr")
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 12, True)


@pytest.mark.parametrize("lora", [{"r": 4, "lora_alpha": 12}, {"use_rslora": True, "lora_dropout": 0.3}])
def test_exported_config_has_the_keys_of_old_peft_and_says_what_the_model_has(micro_qwen, tmp_path, lora):
    model = create_lora_model(micro_qwen, **lora)
    folder = export_lora_adapter(model, tmp_path / "hr")
    keys = {
        "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
        "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type",
    }  # fmt: skip
    assert json.loads((folder / "adapter_config.json").read_text()).keys() == keys | ({"use_rslora"} & lora.keys())
    expected = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    assert PeftConfig.from_pretrained(str(folder)).to_dict() == expected


def test_model_can_still_train_after_an_export(micro_qwen, tmp_path):
    model = create_lora_model(micro_qwen)
    export_lora_adapter(model, tmp_path / "hr")
    assert model.peft_config["default"].inference_mode is False
    assert sum(p.requires_grad for p in model.parameters()) == 8


def test_second_export_replaces_the_first(micro_qwen, random_state, tmp_path):
    model = create_lora_model(micro_qwen)
    for seed in (1, 2):
        export_lora_adapter(model, tmp_path / "hr", random_state(model, seed))
    written, wanted = read_lora_adapter(tmp_path / "hr"), random_state(model, 2)
    assert all(torch.equal(written[n], wanted[n]) for n in wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["hr"]


def test_load_adapter_model_gives_the_exported_adapter(micro_model, random_state, tmp_path):
    model = create_lora_model(micro_model("qwen"))
    load_lora_state(model, random_state(model))
    folder = export_lora_adapter(model, tmp_path / "hr")
    assert torch.equal(logits(load_adapter_model(micro_model("qwen"), folder)), logits(model))


def test_load_adapter_model_refuses_a_folder_without_adapter(micro_qwen, tmp_path):
    with pytest.raises(InputError, match="no adapter"):
        load_adapter_model(micro_qwen, tmp_path)


def test_load_adapter_model_refuses_pickled_weights(micro_qwen, tmp_path):
    folder = export_lora_adapter(create_lora_model(micro_qwen), tmp_path / "hr")
    state = read_lora_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_adapter_model(micro_qwen, folder)


def test_load_adapter_model_refuses_an_adapter_of_another_size(micro_model, tmp_path):
    folder = export_lora_adapter(create_lora_model(micro_model("qwen"), target_modules=["q_proj"]), tmp_path / "hr")
    state = {n: torch.zeros(t.shape[0] + 1, t.shape[1] + 1) for n, t in read_lora_adapter(folder).items()}
    export_lora_adapter(create_lora_model(micro_model("qwen"), target_modules=["q_proj"]), folder, state)
    with pytest.raises(InputError, match="does not fit"):
        load_adapter_model(micro_model("qwen"), folder)


def test_load_adapter_model_refuses_an_adapter_with_missing_tensors(micro_model, tmp_path):
    model = create_lora_model(micro_model("qwen"))
    folder = export_lora_adapter(model, tmp_path / "hr")
    state = {n: t for n, t in read_lora_adapter(folder).items() if "v_proj" not in n}
    export_lora_adapter(model, folder, state)
    with pytest.raises(InputError):
        load_adapter_model(micro_model("qwen"), folder)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 64], ids=["empty", "text", "bytes"])
def test_broken_safetensors_are_an_input_error(micro_qwen, tmp_path, content):
    folder = export_lora_adapter(create_lora_model(copy.deepcopy(micro_qwen)), tmp_path / "hr")
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(InputError):
        read_lora_adapter(folder)
    with pytest.raises(InputError):
        load_adapter_model(micro_qwen, folder)
