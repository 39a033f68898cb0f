import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.training.local_clients import LocalClients


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_factors_and_optimizer_states_are_fp32_on_a_base_of_any_precision(
    micro_qwen, make_examples, monkeypatch, precision, dtype
):
    model = create_lora_model(micro_qwen.to(dtype))
    module, made = LoraClientModule(model), []
    original = module.make_optimizer

    def note(parameters):
        made.append(original(parameters))
        return made[-1]

    monkeypatch.setattr(module, "make_optimizer", note)
    data = {f"hr/c{k}": ClientData("hr", f"c{k}", make_examples(4, k), make_examples(1, 9)) for k in range(2)}
    clients = LocalClients(Fabric(accelerator="cpu", devices=1, precision=precision), module, data, TrainingConfig(), 2)
    start = collect_lora_state(model)
    updates = list(clients.fit([ClientTask(client_id, 1, start, 7) for client_id in data]))
    states = [tensor for state in made[0].state.values() for name, tensor in state.items() if name != "step"]
    parameters = [p for group in made[0].param_groups for p in group["params"]]
    assert len(states) == 2 * len(parameters)  # two moments each
    assert {t.dtype for t in [*states, *parameters]} == {torch.float32}
    assert {t.dtype for update in updates for t in update.state.values()} == {torch.float32}
