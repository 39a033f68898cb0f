"""What the A-matrices of an adapter alone tell about a record: how much of its layers' inputs they have moved towards.

The gradient of A is ``Bᵀ g hᵀ``, g being the gradient at the layer's output: every step adds rows that are combinations
of the inputs h of the training tokens. So ``‖ΔA h‖² / ‖h‖²`` is larger for trained tokens; B is not needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel

from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.lora import lora_layers

BATCH_TOKENS = 2048
"""Tokens of a forward pass, padding included."""


@torch.no_grad()
def input_energy(
    model: PeftModel, changes: Mapping[str, torch.Tensor], examples: Sequence[Example]
) -> npt.NDArray[np.float64]:
    """The energy of each record's inputs in the rows of ΔA, under the base model.

    Args:
        model: its adapter is not used.
        changes: {name of a lora_A: ΔA of shape (r, in_features)}; layers of zeros and names of lora_B count nothing.
        examples: n records.

    Returns:
        For each record the mean over layers and supervised positions of ``‖ΔA h‖² / (‖ΔA‖² ‖h‖²)``, shape (n,).
    """
    device, was_training = next(model.parameters()).device, model.training
    factors = {
        layer: (changes[name] / changes[name].norm()).to(device)
        for layer in lora_layers(model)
        if (name := f"{layer}.lora_A.weight") in changes and bool(changes[name].any())
    }
    energies = np.zeros(len(examples))
    if not factors:
        return energies
    shares: list[torch.Tensor] = []

    def measure(factor: torch.Tensor) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            hidden = inputs[0].float()
            norms = hidden.square().sum(-1).clamp(min=1e-12)
            shares.append((hidden @ factor.T).square().sum(-1) / norms)

        return hook

    model.eval()
    layers = lora_layers(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.disable_adapter())
        for layer, factor in factors.items():
            module: Any = layers[layer]
            stack.callback(module.register_forward_pre_hook(measure(factor)).remove)
        for batch in _batches(examples):
            width = len(examples[batch[-1]])
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask, counted = torch.zeros_like(ids), torch.zeros(len(batch), width)
            for row, i in enumerate(batch):
                length = len(examples[i])
                ids[row, :length], mask[row, :length] = examples[i].ids, 1
                counted[row, : length - 1] = examples[i].supervised[1:].float()  # the position that predicts it
            shares.clear()
            model(input_ids=ids.to(device), attention_mask=mask.to(device))
            mean = torch.stack(shares).mean(0).cpu().double()
            energies[batch] = ((mean * counted).sum(1) / counted.sum(1)).numpy()
    model.train(was_training)
    return energies


def _batches(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of records of similar lengths, at most `BATCH_TOKENS` each."""
    batches: list[list[int]] = []
    for i in sorted(range(len(examples)), key=lambda i: len(examples[i])):
        if not batches or (len(batches[-1]) + 1) * len(examples[i]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches
