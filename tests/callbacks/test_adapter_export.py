import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from fl_lightning import AdapterExport, collect_lora_state, create_lora_model


def make_base():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=16, num_hidden_layers=1, **sizes)).eval()


@pytest.fixture(scope="module")
def model():
    return create_lora_model(make_base(), 2, 4, 0.0, ["q_proj", "v_proj"], seed=7)


@pytest.fixture
def shifted(model):
    """The model's fresh adapter with a number added to every tensor."""
    return lambda by: {name: tensor + by for name, tensor in collect_lora_state(model).items()}


@pytest.fixture
def export(play, model, plain_config, tmp_path):
    def run(script, **arguments):
        initial = collect_lora_state(model)
        config = plain_config(rounds=len(script))
        return play(script, config, run_folder=tmp_path, initial=initial, model=model, **arguments)

    return run


def test_client_and_department_adapters_hold_exactly_the_states(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1), "hr/client_1": (shifted(1.5), 3)}], callbacks=[AdapterExport()])
    wanted = {"client_exports/hr/round_1_client_0": 0.5, "client_exports/hr/round_1_client_1": 1.5, "adapters/hr": 1.25}
    for place, by in wanted.items():
        got = load_file(tmp_path / place / "adapter_model.safetensors")
        assert got.keys() == shifted(by).keys()
        for name, tensor in shifted(by).items():
            torch.testing.assert_close(got[name], tensor, atol=1e-6, rtol=0)


def test_adapter_opens_with_peft_and_changes_the_logits(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1)}], callbacks=[AdapterExport()])
    base, ids = make_base(), torch.tensor([[1, 2, 3]])
    plain = base(ids).logits
    opened = PeftModel.from_pretrained(base, str(tmp_path / "adapters" / "hr"))
    assert opened.peft_config["default"].r == 2
    assert opened.peft_config["default"].inference_mode
    assert not torch.allclose(opened(ids).logits, plain)


def test_indexes_name_relative_folders_that_exist(export, shifted, tmp_path):
    both = {"hr/client_0": (shifted(0.5), 1), "it/client_0": (shifted(0.1), 1)}
    export([both, both], callbacks=[AdapterExport()])
    departments = json.loads((tmp_path / "dept_lora_federated.json").read_text())
    clients = json.loads((tmp_path / "client_lora_federated.json").read_text())
    assert departments == {"hr": "adapters/hr", "it": "adapters/it"}
    assert clients == {
        "rounds": {
            r: {d: {"client_0": f"client_exports/{d}/round_{r}_client_0"} for d in ("hr", "it")} for r in ("1", "2")
        }
    }
    for place in departments.values():
        assert (tmp_path / place / "adapter_config.json").is_file()


def test_department_adapters_are_those_of_the_last_round(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1)}, {"hr/client_0": (shifted(2.0), 1)}], callbacks=[AdapterExport()])
    got = load_file(tmp_path / "adapters" / "hr" / "adapter_model.safetensors")
    for name, tensor in shifted(2.0).items():
        torch.testing.assert_close(got[name], tensor, atol=1e-6, rtol=0)


def test_left_out_update_is_not_exported(export, shifted, tmp_path):
    script = [{"hr/client_0": (shifted(float("nan")), 1), "hr/client_1": (shifted(0.5), 1)}]
    export(script, callbacks=[AdapterExport()])
    assert [p.name for p in (tmp_path / "client_exports" / "hr").iterdir()] == ["round_1_client_1"]
    clients = json.loads((tmp_path / "client_lora_federated.json").read_text())
    assert clients["rounds"]["1"]["hr"] == {"client_1": "client_exports/hr/round_1_client_1"}


def test_retention_drops_the_exports_of_older_rounds_and_their_entries(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1)}] * 4, callbacks=[AdapterExport(keep_rounds=2)])
    assert sorted(p.name for p in (tmp_path / "client_exports" / "hr").iterdir()) == [
        "round_3_client_0",
        "round_4_client_0",
    ]
    assert list(json.loads((tmp_path / "client_lora_federated.json").read_text())["rounds"]) == ["3", "4"]


def test_zero_keeps_the_exports_of_all_rounds(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1)}] * 3, callbacks=[AdapterExport(keep_rounds=0)])
    assert len(list((tmp_path / "client_exports" / "hr").iterdir())) == 3


def test_what_is_where_survives_a_resume(export, shifted):
    callback, other = AdapterExport(), AdapterExport()
    export([{"hr/client_0": (shifted(0.5), 1)}], callbacks=[callback])
    other.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    other.load_round_records({1: callback.round_record(1), 2: {"hr": {"client_0": "of a round that was dropped"}}})
    assert other.state_dict() == callback.state_dict() == {"kept": ["1"]}
    assert other.round_record(1) == {"hr": {"client_0": "client_exports/hr/round_1_client_0"}}
    assert other.round_record(2) is None
    older = AdapterExport()
    older.load_state_dict({"rounds": {"1": other.round_record(1)}})
    assert older.round_record(1) == other.round_record(1)


def test_nothing_half_written_stays_behind(export, shifted, tmp_path):
    export([{"hr/client_0": (shifted(0.5), 1)}] * 2, callbacks=[AdapterExport()])
    names = [p.name for p in tmp_path.rglob("*")]
    assert not [n for n in names if n.endswith((".tmp", ".old")) or n.startswith(".")]


def test_without_a_run_folder_nothing_is_written(play, model, shifted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play(
        [{"hr/client_0": (shifted(0.5), 1)}],
        callbacks=[AdapterExport()],
        initial=collect_lora_state(model),
        model=model,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_update_of_another_dtype_is_exported_in_fp32(export, shifted, tmp_path, dtype):
    update = {name: tensor.to(dtype) for name, tensor in shifted(0.5).items()}
    export([{"hr/client_0": (update, 1)}], callbacks=[AdapterExport()])
    client, department = (
        load_file(tmp_path / place / "adapter_model.safetensors")
        for place in ("client_exports/hr/round_1_client_0", "adapters/hr")
    )
    for name, tensor in update.items():
        assert client[name].dtype == department[name].dtype == torch.float32
        assert torch.equal(client[name], tensor.float())
        assert torch.equal(department[name], tensor.float())
    opened = PeftModel.from_pretrained(make_base(), str(tmp_path / "client_exports" / "hr" / "round_1_client_0"))
    assert all(torch.isfinite(tensor).all() for tensor in opened(torch.tensor([[1, 2, 3]])).logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_department_whose_updates_are_all_left_out_keeps_its_adapter_on_the_disk(export, shifted, tmp_path, value):
    good = {"hr/client_0": (shifted(0.5), 1), "it/client_0": (shifted(0.25), 1)}
    export([good, {**good, "hr/client_0": (shifted(value), 1)}], callbacks=[AdapterExport()])
    got = load_file(tmp_path / "adapters" / "hr" / "adapter_model.safetensors")
    for name, tensor in shifted(0.5).items():
        assert torch.equal(got[name], tensor)
    assert sorted(p.name for p in (tmp_path / "client_exports" / "hr").iterdir()) == ["round_1_client_0"]
    assert list(json.loads((tmp_path / "client_lora_federated.json").read_text())["rounds"]["2"]) == ["it"]
