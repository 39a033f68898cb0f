"""Three clients on micro models."""

from __future__ import annotations

import pytest
from client_fits import RATE, TARGETS, SteadyModule
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.training.local_clients import LocalClients

COUNTS = (5, 8, 11)


@pytest.fixture
def federation(make_examples):
    """Three clients with ragged record counts."""
    return {
        f"hr/client_{k}": ClientData("hr", f"client_{k}", make_examples(n, seed=n), make_examples(3, seed=n + 50))
        for k, n in enumerate(COUNTS)
    }


@pytest.fixture
def local_clients(micro_model, federation):
    """Factory of LocalClients on a micro model: a fresh model at every call, with the same weights."""

    def make(kind="qwen", at_once=1, dropout=0.0, precision="32-true", base_dropout=False, **training):
        base = micro_model(kind, dropout=base_dropout)
        names = TARGETS.get(kind, ["q_proj", "v_proj"])
        model = create_lora_model(base, r=4, lora_alpha=8, lora_dropout=dropout, target_modules=names)
        module = SteadyModule(model, learning_rate=RATE)
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        return LocalClients(fabric, module, federation, TrainingConfig(**training), at_once), model

    return make
