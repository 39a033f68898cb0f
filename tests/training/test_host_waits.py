"""A step never waits for the device.

It runs here on torch's ``meta`` device, whose tensors have shapes but no values: whoever reads one on the host, or
needs a shape that depends on values, gets an error. On a GPU the same line would wait until the GPU has caught up.
"""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.modeling import cohort as cohort_module
from fl_lightning.modeling import low_rank_product
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.training.cohort_fit import CohortFit
from fl_lightning.training.memory import MemoryLimit
from fl_lightning.training.step_rows import RowMaker

META = torch.device("meta")


@pytest.fixture
def fit(micro_model, random_state, monkeypatch):
    """A factory of (CohortFit of three clients on the meta device, its optimizer)."""

    def make(**training):
        model = create_lora_model(micro_model("qwen"), r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
        states = [random_state(model, seed) for seed in range(3)]
        module = LoraClientModule(model.to(META)).eval()
        monkeypatch.setattr(Fabric, "device", property(lambda self: META))
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # does not know the device
        fabric = Fabric(accelerator="cpu", devices=1)
        forward = fabric.setup_module(module, move_to_device=False)
        cohort = LoraCohort(model)
        cohort.load(states, META)
        config = TrainingConfig(**training)
        optimizer = module.make_optimizer(cohort.parameters())
        return CohortFit(fabric, module, forward, cohort, config, MemoryLimit(None, META)), optimizer

    return make


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_no_part_of_a_step_reads_the_device(fit, make_examples, monkeypatch, grouped, checkpointing):
    """Of a packed row; for padded rows transformers itself looks for packed sequences on the host, once a row."""
    monkeypatch.setattr(low_rank_product, "_has_kernel", lambda device, dtype: grouped)
    monkeypatch.setattr(cohort_module, "compute_dtype", lambda device: torch.bfloat16 if grouped else torch.float32)
    fitting, optimizer = fit(proximal_mu=0.1, gradient_checkpointing=checkpointing)
    windows = [[make_examples(2, seed=0), make_examples(1, seed=1)], [], [make_examples(3, seed=2)]]
    starts = [p.detach().clone() for p in fitting._cohort.parameters()]
    streams = [dropout_stream(seed) for seed in range(3)]
    maker = RowMaker(fitting._cohort, streams, META, fitting._module.parts)
    with fitting._attached():
        for step in maker.steps(list(zip(windows, windows, strict=True))):
            losses = fitting._step(step, optimizer, [(starts, 0.1)])
    assert losses.device == META


def test_the_device_of_this_test_refuses_to_be_read():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device=META)[0].item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device=META).nonzero()
