"""An adapter in PEFT's format for a model whose LoRA layers have another rank, scale or choice of layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fl_lightning.errors import InputError
from fl_lightning.linalg.adapter_algebra import pad_to_common_rank, resize_like
from fl_lightning.linalg.factors import FactorNames, pair_names
from fl_lightning.modeling.adapter_config import check_plain_lora, is_adapted, layer_scaling, read_adapter_config
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.state import LoraState, problem_with
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PREFIX = "base_model.model."
"""Before the name of a base model's layer in PEFT's parameter names."""


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter for a model with another scaling.

    Attributes:
        state: its tensors, with the names of the model's adapter and of one rank.
        relative_scaling: its lora_alpha / r divided by that of the model.
    """

    state: LoraState
    relative_scaling: float = 1.0


def adapted_layers(folder: Path) -> list[str]:
    """Names in the base model of the layers that an adapter changes, such as ``model.layers.0.self_attn.q_proj``.

    Raises:
        InputError: if there is no adapter, or it is more than plain LoRA.
    """
    check_plain_lora(read_adapter_config(folder), folder / ADAPTER_CONFIG)
    try:
        return [layer.removeprefix(PREFIX) for layer in pair_names(read_lora_adapter(folder))]
    except ValueError as error:
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: {error}") from error


def read_adapter(folder: Path, initial: LoraState, scaling: float) -> ScaledAdapter:
    """Read an adapter in PEFT's format, of any rank and scaling, which may differ between layers.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        initial: an adapter of the model; layers that the folder's adapter leaves out get zeros.
        scaling: the model's lora_alpha / r.

    Returns:
        The adapter, which gives the outputs that PEFT gives with the folder.

    Raises:
        InputError: if there is no adapter, it is more than plain LoRA, or it does not fit the model.
    """
    config = read_adapter_config(folder)
    check_plain_lora(config, folder / ADAPTER_CONFIG)
    state, weights = read_lora_adapter(folder), folder / ADAPTER_WEIGHTS
    if extra := sorted(state.keys() - initial.keys()):
        raise InputError(
            f"{weights}: {len(extra)} unknown tensors, first {extra[0][:200]}; expected an adapter of this base with "
            "layers of lora.target_modules; add its layers there"
        )
    expected: dict[str, FactorNames] = {}
    for layer, names in pair_names(initial).items():
        if is_adapted(config, layer.removeprefix(PREFIX)):
            expected[layer] = names
        elif names.a in state or names.b in state:
            raise InputError(f"{weights}: {layer}: expected tensors of the layers that target_modules names, got more")
    if not expected:
        raise InputError(f"{folder / ADAPTER_CONFIG}: target_modules: expected layers of this model, got none of them")
    like = {name: initial[name] for names in expected.values() for name in names}
    if problem := problem_with(state, resize_like(state, like)):
        raise InputError(f"{weights}: {problem}; expected an adapter of this base")
    scalings = {
        layer: layer_scaling(config, layer.removeprefix(PREFIX), state[a].shape[0], folder / ADAPTER_CONFIG)
        for layer, (a, _) in expected.items()
    }
    common = next(iter(scalings.values()))
    complete = dict(state)
    for layer, (a, b) in pair_names(initial).items():
        if layer not in expected:
            complete[a], complete[b] = torch.zeros(1, initial[a].shape[1]), torch.zeros(initial[b].shape[0], 1)
        elif scalings[layer] != common:
            complete[b] = state[b] * (scalings[layer] / common)
    return ScaledAdapter(dict(sorted(pad_to_common_rank(complete).items())), common / scaling)
