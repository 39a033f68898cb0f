"""Runs the MLP of the last layer on the supervised positions only.

After the last attention, positions no longer interact: each token's hidden state passes an MLP, a norm and the head,
and the loss needs the supervised positions only. The MLP therefore skips the others, and the loss does not change. With
S of T positions supervised this saves a share (1 − S / T) of one MLP, forward and backward: most of it for short
answers to long prompts, on a base model with few layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer


def decoder_layers(model: Any) -> torch.nn.ModuleList | None:
    """The layers of a transformers decoder, or None if they are not in one list."""
    decoder = getattr(model, "base_model", model)
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    return layers if isinstance(layers, torch.nn.ModuleList) else None


def last_mlp(model: Any) -> torch.nn.Module | None:
    """The MLP of a transformers decoder's last layer, or None if it must run on the whole row.

    It must if it has LoRA layers, which find a client's tokens by their position in the row, and if the layer runs
    again in the backward pass.
    """
    layers = decoder_layers(model)
    if layers is None or getattr(layers[-1], "gradient_checkpointing", False):
        return None
    mlp = getattr(layers[-1], "mlp", None)
    if not isinstance(mlp, torch.nn.Module) or any(isinstance(module, LoraLayer) for module in mlp.modules()):
        return None
    return mlp


@contextlib.contextmanager
def last_mlp_on(model: Any, keep: torch.Tensor) -> Iterator[None]:
    """Within this block the last MLP of `model` runs on the positions `keep` only; elsewhere its output is 0.

    Args:
        model: a transformers causal language model.
        keep: positions in the row, each at most once, shape (S,).
    """
    mlp = last_mlp(model)
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def select_positions(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs:  # a mixture of experts whose routing needs other inputs
            return None
        shapes.append(args[0].shape)
        return (args[0].index_select(1, keep),), kwargs

    def scatter_positions(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not shapes:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        full = hidden.new_zeros(*shapes.pop()[:2], hidden.shape[-1]).index_copy(1, keep, hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    hooks = [
        mlp.register_forward_pre_hook(select_positions, with_kwargs=True),
        mlp.register_forward_hook(scatter_positions),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
