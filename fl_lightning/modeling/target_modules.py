"""Which layers of a base model get an adapter: names, regular expressions, or all linear layers, as in PEFT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from fl_lightning.errors import InputError, nearest

ALL_LINEAR = "all-linear"
PATTERN_CHARACTERS = frozenset("*+?()[]{}|^$\\")
"""A target with one of them is a regular expression for whole names of layers."""
HEADS = ("lm_head", "embed_out")


def expand_targets(model: Any, targets: Sequence[str]) -> list[str]:
    r"""Names for PEFT's ``target_modules``.

    Args:
        model: a transformers causal language model.
        targets: names or their ends (``q_proj``), regular expressions for whole names, or ``all-linear``.

    Returns:
        The targets, sorted; whole names of linear layers in place of ``all-linear`` and of regular expressions.

    Raises:
        InputError: if a target matches no layer, or one that cannot get an adapter.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
        >>> expand_targets(model, [r".*\.mlp\.c_.*"])
        ['transformer.h.0.mlp.c_fc', 'transformer.h.0.mlp.c_proj']
    """
    modules = dict(model.named_modules())
    linear = {
        name for name, module in modules.items()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name.rsplit(".", 1)[-1] not in HEADS
    }  # fmt: skip
    expanded: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            expanded |= linear
        elif PATTERN_CHARACTERS & set(target):
            expanded |= _matches(target, linear)
        else:
            _check_name(model, target, modules, linear)
            expanded.add(target)
    return sorted(expanded)


def _matches(pattern: str, linear: set[str]) -> set[str]:
    try:
        matches = {name for name in linear if re.fullmatch(pattern, name)}
    except re.error as error:
        raise InputError(f"lora.target_modules: {pattern!r} is not a valid regular expression: {error}") from error
    if not matches:
        raise InputError(
            f"lora.target_modules: {pattern!r} matches no linear layer of the base model; expected a pattern for a "
            f"whole name such as {min(linear, default='…')}"
        )
    return matches


def _check_name(model: Any, target: str, modules: dict[str, Any], linear: set[str]) -> None:
    matches = [name for name in modules if name == target or name.endswith(f".{target}")]
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    if not matches:
        if any(name == target or name.endswith(f".{target}") for name, _ in model.named_parameters()):
            raise InputError(
                f"lora.target_modules: {target!r} is a tensor and no layer, such as the weights of all experts; "
                f"expected a linear layer: one of {known}"
            )
        suffixes = {name.rsplit(".", 1)[-1] for name in linear}
        raise InputError(
            f"lora.target_modules: {target!r} matches no module of the base model{nearest(target, suffixes)}"
            f"; expected one of {known}"
        )
    for name in matches:
        kind = ""
        if name.rsplit(".", 1)[-1] in HEADS:
            kind = "the output head, which sees responses only"
        elif isinstance(modules[name], torch.nn.Embedding):
            kind = "an embedding"
        elif name not in linear:
            kind = f"of class {type(modules[name]).__name__}"
        if kind:
            raise InputError(f"lora.target_modules: {name} is {kind}, expected a linear layer: one of {known}")
