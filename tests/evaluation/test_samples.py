import torch
from lightning.fabric import Fabric

from fl_lightning import LoraClientModule, create_lora_model
from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.record_forms import parse_record
from fl_lightning.data.tokenization import Example, encode
from fl_lightning.evaluation import samples as samples_module
from fl_lightning.evaluation.samples import Sample, as_json, as_markdown, split_prompt, take_samples
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.training.local_clients import LocalClients


def test_base_and_adapter_answer_the_first_prompts_of_each_client_in_turn(tiny_base, random_state):
    base, tokenizer = tiny_base

    def records(*names):
        return encode([parse_record({"prompt": f"say {n}", "completion": n}) for n in names], tokenizer, 64)

    data = {
        "hr/c0": ClientData("hr", "c0", [], records("a", "b", "c")),
        "hr/c1": ClientData("hr", "c1", [], records("d")),
        "it/c0": ClientData("it", "c0", [], []),
    }
    module = LoraClientModule(create_lora_model(base))
    initial, moved = collect_lora_state(module.model), random_state(module.model)
    clients = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, TrainingConfig())
    samples = take_samples(clients, tokenizer, data, initial, {"hr": moved, "it": moved}, count=3, max_new_tokens=4)
    assert [(s.client_id, s.reference) for s in samples] == [("hr/c0", "a"), ("hr/c1", "d"), ("hr/c0", "b")]
    assert all("say" in s.prompt for s in samples)
    assert any(s.base != s.adapter for s in samples)
    again = take_samples(clients, tokenizer, data, initial, {"hr": initial}, count=2, max_new_tokens=4)
    assert all(s.base == s.adapter for s in again)  # the fresh adapter leaves the base as it is
    assert [s.base for s in again] == [s.base for s in samples[:2]]


def test_base_answers_all_departments_in_one_batch(tiny_base, monkeypatch):
    base, tokenizer = tiny_base

    def records(*names):
        return encode([parse_record({"prompt": f"say {n}", "completion": n}) for n in names], tokenizer, 64)

    data = {f"{d}/c0": ClientData(d, "c0", [], records("a", "b")) for d in ("hr", "it", "ops")}
    module = LoraClientModule(create_lora_model(base))
    initial = collect_lora_state(module.model)
    clients = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, TrainingConfig())
    batches, original = [], samples_module.generate
    monkeypatch.setattr(
        samples_module,
        "generate",
        lambda model, prompts, **k: batches.append(len(prompts)) or original(model, prompts, **k),
    )
    adapters = dict.fromkeys(("hr", "it", "ops"), initial)
    samples = take_samples(clients, tokenizer, data, initial, adapters, count=2, max_new_tokens=2)
    assert batches == [6, 2, 2, 2]
    assert [s.client_id for s in samples] == ["hr/c0", "hr/c0", "it/c0", "it/c0", "ops/c0", "ops/c0"]


def test_texts_cannot_leave_their_cell():
    sample = Sample("hr/c0", "a | b\n\nc", "<script>", "", "`x`")
    assert as_markdown([sample]).splitlines()[2] == "| a &#124; b c | &lt;script> | – | &#96;x&#96; |"
    assert as_json([sample])["samples"][0]["department"] == "hr"


def test_record_without_prompt_is_cut_in_half():
    whole = Example(torch.arange(6), torch.tensor([False, True, True, True, True, True]))
    assert [part.tolist() for part in split_prompt(whole)] == [[0, 1, 2], [3, 4, 5]]
    asked = Example(torch.arange(4), torch.tensor([False, False, False, True]))
    assert [part.tolist() for part in split_prompt(asked)] == [[0, 1, 2], [3]]
