"""The last layer's MLP, run on the supervised positions only.

After the last attention nothing mixes positions any more: a token's hidden state meets an MLP, a norm and the head, and
the head looks at supervised positions alone. What the MLP would make of prompts is thrown away, so it never sees them;
the losses stay the same numbers. With S of T positions supervised this saves (1 − S / T) of one MLP, forward and
backward: most of it for short answers to long prompts on a base of few layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer


def decoder_layers(model: Any) -> torch.nn.ModuleList | None:
    """The layers of a transformers decoder, or None where they are not in one list."""
    decoder = getattr(model, "base_model", model)
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    return layers if isinstance(layers, torch.nn.ModuleList) else None


def last_mlp(model: Any) -> torch.nn.Module | None:
    """The MLP of a transformers decoder's last layer, or None where it cannot run on fewer tokens than the row has.

    That is so where the MLP has LoRA layers, which tell clients apart by their tokens in the whole row, and where the
    layer is run anew in the backward pass.
    """
    layers = decoder_layers(model)
    if layers is None or getattr(layers[-1], "gradient_checkpointing", False):
        return None
    mlp = getattr(layers[-1], "mlp", None)
    if not isinstance(mlp, torch.nn.Module) or any(isinstance(module, LoraLayer) for module in mlp.modules()):
        return None
    return mlp


@contextlib.contextmanager
def last_mlp_at(model: Any, keep: torch.Tensor) -> Iterator[None]:
    """Inside this block the last MLP of `model` sees the positions `keep` only; its output is 0 elsewhere.

    Args:
        model: a transformers causal language model.
        keep: positions in the row, each at most once, shape (S,).
    """
    mlp = last_mlp(model)
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def pick(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs:  # a mixture of experts that routes by something else as well
            return None
        shapes.append(args[0].shape)
        return (args[0].index_select(1, keep),), kwargs

    def spread(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not shapes:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        whole = hidden.new_zeros(*shapes.pop()[:2], hidden.shape[-1]).index_copy(1, keep, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    hooks = [mlp.register_forward_pre_hook(pick, with_kwargs=True), mlp.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
