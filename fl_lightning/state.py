"""LoRA tensors in memory.

A `LoraState` maps PEFT's on-disk parameter names to tensors. Factors are recognized by name, never by shape:
``lora_A`` of shape (r, in_features), ``lora_B`` of shape (out_features, r), in ``h = W0 x + (lora_alpha / r) B A x``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch

LoraState: TypeAlias = dict[str, torch.Tensor]
Factor: TypeAlias = Literal["a", "b", "all", "none"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that a client may send. Narrower dtypes are quantized codes; torch has no isnan for them."""


def is_lora_a(name: str) -> bool:
    """Whether the parameter is a down-projection A (embeddings' ``lora_embedding_A`` too)."""
    return "lora_A" in name or "lora_embedding_A" in name


def is_lora_b(name: str) -> bool:
    """Whether the parameter is an up-projection B (embeddings' ``lora_embedding_B`` too)."""
    return "lora_B" in name or "lora_embedding_B" in name


def layer_index(name: str) -> int | None:
    """The decoder layer of a parameter: the first number among the parts of its name; None if there is none.

    Example:
        >>> layer_index("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight")
        3
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def select(state: Mapping[str, torch.Tensor], factor: Factor) -> LoraState:
    """The tensors of one factor (``a`` or ``b``), of both (``all``) or of neither (``none``), not copied.

    Raises:
        ValueError: for another factor.
    """
    tests: dict[str, Callable[[str], bool]] = {
        "a": is_lora_a,
        "b": is_lora_b,
        "all": lambda name: is_lora_a(name) or is_lora_b(name),
        "none": lambda name: False,
    }
    if factor not in tests:
        raise ValueError(f"factor: expected one of {', '.join(tests)}, got {factor!r}")
    return {
        name: state[name] for name in state if tests[factor](name)
    }  # reads no other tensor, since they may be on disk


def snapshot(state: Mapping[str, torch.Tensor]) -> LoraState:
    """A detached fp32 copy on the CPU, in sorted name order, sharing no memory with live parameters.

    Tensors on another device are joined there and copied at once, since each copy waits for the device.
    """
    if any(tensor.device.type != "cpu" for tensor in state.values()):
        return joined_copy(state)
    return {n: state[n].detach().to("cpu", torch.float32, copy=True).contiguous() for n in sorted(state)}


def joined_copy(state: Mapping[str, torch.Tensor]) -> LoraState:
    """`snapshot` of tensors on one device, by a single copy to the CPU."""
    names = sorted(state)
    joined = torch.cat([state[n].detach().to(torch.float32).flatten() for n in names]).cpu()
    parts = torch.split(joined, [state[n].numel() for n in names])
    return {n: part.view(state[n].shape).clone() for n, part in zip(names, parts, strict=True)}


def num_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the tensors in their dtypes: the payload if this state is sent."""
    return sum(t.numel() * t.element_size() for t in state.values())


def flatten(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All tensors as one fp64 vector, in sorted name order: shape (number of elements,)."""
    if not state:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([state[n].detach().double().flatten() for n in sorted(state)])


def norm(state: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm over all tensors, in fp64."""
    return float(sum(t.detach().double().square().sum().item() for t in state.values()) ** 0.5)


def distance(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """Euclidean distance over the tensors in both states, in fp64."""
    shared = first.keys() & second.keys()
    total = sum((first[n].double() - second[n].double()).square().sum().item() for n in sorted(shared))
    return float(total**0.5)


def problem_with(update: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> str | None:
    """Why an update must not be averaged with states like `reference`, or None if it may.

    Checks: same names and shapes; dense floating-point tensors with data; finite in fp32, the dtype of the mean.
    """
    if missing := sorted(reference.keys() - update.keys()):
        return f"{len(missing)} tensors missing, first {missing[0]}"
    if extra := sorted(update.keys() - reference.keys(), key=str):
        return f"{len(extra)} unknown tensors, first {ascii(str(extra[0]))[1:-1][:80]}"
    for name, expected in reference.items():
        tensor: Any = update[name]
        if not isinstance(tensor, torch.Tensor):
            return f"{name}: expected a dense tensor with data, got {type(tensor).__name__}"
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"{name}: expected a dense tensor with data, got {'meta' if tensor.is_meta else tensor.layout}"
        if tensor.shape != expected.shape:
            return f"{name}: expected shape {tuple(expected.shape)}, got {tuple(tensor.shape)}"
        if tensor.dtype not in FLOATS:
            return f"{name}: expected floating point of 16 to 64 bits, got {tensor.dtype}"
        if not torch.isfinite(tensor.float()).all():
            return f"{name}: not finite (NaN or infinity) in fp32"
    return None


def check_same_layout(states: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Check that states can be averaged with each other.

    Raises:
        ValueError: if names or shapes differ.
    """
    first: Mapping[str, torch.Tensor] | None = None
    for index, state in enumerate(states):
        if first is None:
            first = state
            continue
        for name in sorted(first.keys() | state.keys()):
            if name not in first or name not in state:
                raise ValueError(f"state {index}: expected the names of state 0, got {name} in one of them only")
            if first[name].shape != state[name].shape:
                raise ValueError(
                    f"state {index}: {name}: expected shape {tuple(first[name].shape)}, got {tuple(state[name].shape)}"
                )
