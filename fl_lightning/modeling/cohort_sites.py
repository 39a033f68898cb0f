"""The layers of a PEFT model in which a cohort's adapters work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from fl_lightning.errors import InputError
from fl_lightning.modeling.dropout import Keys
from fl_lightning.modeling.lora import ADAPTER, lora_layers

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of layers of a single expert, in models that do not keep all experts in one tensor."""


@dataclass
class CohortSite:
    """A LoRA layer.

    Attributes:
        factors: A and B of all clients for the next row, scaled; shapes (K, r, in_features), (K, out_features, r).
        frozen_product: A and B of each run of neighboring clients with the same frozen product, stacked; or None.
        feature_keys: for its dropout; None without dropout.
        is_used: whether tokens have passed it.
    """

    name: str
    layer: Any
    scaling: float
    dropout: float
    factors: tuple[torch.Tensor, torch.Tensor] | None = None
    frozen_product: tuple[torch.Tensor, torch.Tensor] | None = None
    feature_keys: Keys | None = None
    is_used: bool = False


def cohort_sites(model: PeftModel) -> list[CohortSite]:
    """The LoRA layers of a model, in order.

    Raises:
        InputError: if one is not linear, or is the output head or part of an expert.
    """
    sites = []
    for name, layer in lora_layers(model).items():
        if layer.lora_embedding_A or layer.lora_variant:
            raise InputError(f"lora.target_modules: {name} is not a plain LoRA linear layer; choose linear layers")
        if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out"):
            raise InputError(f"lora.target_modules: {name} is the output head, which sees responses only; remove it")
        if EXPERT.search(name):
            raise InputError(f"lora.target_modules: {name} is part of an expert, which sees few tokens; remove it")
        p = float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0))
        sites.append(CohortSite(name, layer, float(layer.scaling[ADAPTER]), p))
    return sites
