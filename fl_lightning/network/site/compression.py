"""Fewer bytes for an update: its difference from its start in 16 or 8 bits, what that loses made good the next round.

Error feedback (Seide, Fu, Droppo, Li, Yu 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs"; Karimireddy, Rebjock, Stich, Jaggi 2019, arXiv 1901.09847): a round sends
``Q(Δ_t + e_t)`` and keeps ``e_{t+1} = Δ_t + e_t − Q(Δ_t + e_t)``, so that ``Σ Q = Σ Δ − e_T``: over all rounds no more
is lost than one rest. The rest stays with the site, by round: a round that is repeated begins with the one before it.

=========  ===========================================  =======================================
transport  what travels of a tensor                     error of a value
=========  ===========================================  =======================================
fp32       the state itself, as it is                   none
bf16       Δ + e in bfloat16                            up to 1/256 of the value
int8       codes from −127 to 127 and float32 scales    up to 1/254 of its row's largest value
=========  ===========================================  =======================================

A row of int8 is what belongs to one index of the shorter side, so one scale for each of the r components: rows of A of
shape (r, in_features), columns of B of shape (out_features, r).

A site that clips and adds noise does that first; what is done to the result here costs no more privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from fl_lightning.state import LoraState, norm

Transport: TypeAlias = Literal["fp32", "bf16", "int8"]
TRANSPORTS: tuple[Transport, ...] = ("fp32", "bf16", "int8")
SCALES = "|scale"
"""Ends the name of a tensor's scales; no parameter's name has such an end."""
LEVELS = 127


@dataclass(frozen=True)
class Encoded:
    """What a site sends of an update and what it keeps.

    Attributes:
        tensors: what travels, as `layout` says.
        rest: e, in fp32; give it to the next round's `encode`.
        relative_error: ‖e‖ / ‖Δ + e_before‖; 0 where there is nothing to send.
        num_bytes: of the tensors.
    """

    tensors: LoraState
    rest: LoraState = field(default_factory=dict)
    relative_error: float = 0.0
    num_bytes: int = 0


def encode(
    state: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor],
    transport: Transport,
    rest: Mapping[str, torch.Tensor] | None = None,
) -> Encoded:
    """An update as it travels.

    Args:
        state: the update, over what is sent.
        start: what it began from, over at least that.
        transport: fp32, bf16 or int8.
        rest: e of the round before; None at the start, and with combiners that draw a new start in every round. What it
            has of other parameters is kept for the round that sends them.

    Raises:
        ValueError: a transport that is none, names or shapes that differ, or a value that is not finite.

    Example:
        >>> start = {"lora_A": torch.zeros(1, 2)}
        >>> sent = encode({"lora_A": torch.tensor([[1.27, 0.014]])}, start, "int8")
        >>> sent.tensors["lora_A"].tolist(), round(sent.tensors["lora_A|scale"].item(), 6), sent.num_bytes
        ([[127, 1]], 0.01, 6)
        >>> round(sent.rest["lora_A"][0, 1].item(), 6)
        0.004
    """
    _check_transport(transport)
    before = rest or {}
    if transport == "fp32":
        plain = {name: _finite(name, state[name].detach().to("cpu", torch.float32)) for name in sorted(state)}
        for name, tensor in plain.items():
            _same_shape(name, tensor, start)
        return Encoded(plain, dict(before), 0.0, _size(plain))
    wanted = {name: _difference(name, state[name], start, before) for name in sorted(state)}
    tensors: LoraState = {}
    left: LoraState = {}
    for name, difference in wanted.items():
        tensors.update(_packed(name, difference, transport))
        left[name] = (difference - _unpacked(name, tensors, transport)).float()
    length = norm(wanted)
    error = norm(left) / length if length else 0.0
    return Encoded(tensors, {**before, **left}, error, _size(tensors))


def decode(tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], transport: Transport) -> LoraState:
    """The state that an encoded update stands for, fp32 on the CPU.

    Args:
        tensors: as they came, from anybody: names, dtypes, shapes and values are checked.
        start: what the update began from, over just what is sent.
        transport: as agreed.

    Raises:
        ValueError: saying what is not as `layout` has it.

    Example:
        >>> start = {"lora_A": torch.ones(1, 2)}
        >>> sent = encode({"lora_A": torch.tensor([[2.0, 0.5]])}, start, "bf16")
        >>> decode(sent.tensors, start, "bf16")
        {'lora_A': tensor([[2.0000, 0.5000]])}
    """
    wanted = layout(start, transport)
    if odd := sorted(wanted.keys() ^ tensors.keys(), key=str):
        which = "missing" if odd[0] in wanted else "unknown"
        raise ValueError(f"{ascii(str(odd[0]))[1:-1][:80]}: {which} in an update by {transport}")
    for name, (dtype, shape) in wanted.items():
        got = tensors[name]
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise ValueError(f"{name}: got {got.dtype} of shape {tuple(got.shape)}, wanted {dtype} of shape {shape}")
        if got.is_floating_point():
            _finite(name, got)
        if name.endswith(SCALES) and bool((got < 0).any()):
            raise ValueError(f"{name}: got a scale below 0, wanted 0 or more")
    if transport == "fp32":
        return {name: tensors[name].detach().clone() for name in sorted(start)}
    return {
        name: _finite(name, (start[name].double() + _unpacked(name, tensors, transport)).float())
        for name in sorted(start)
    }


def layout(start: Mapping[str, torch.Tensor], transport: Transport) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """{name: (dtype, shape)} of what travels for an update from this start.

    Example:
        >>> layout({"lora_B": torch.zeros(6, 2)}, "int8")
        {'lora_B': (torch.int8, (6, 2)), 'lora_B|scale': (torch.float32, (2,))}
    """
    _check_transport(transport)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[transport]
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in sorted(start):
        shape = tuple(start[name].shape)
        found[name] = (dtype, shape)
        if transport == "int8":
            found[name + SCALES] = (torch.float32, (_rows(start[name]).shape[0],))
    return found


def num_bytes_of(start: Mapping[str, torch.Tensor], transport: Transport) -> int:
    """Bytes of the tensors of one update from this start; no update may have more."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout(start, transport).values())


def _check_transport(transport: str) -> None:
    if transport not in TRANSPORTS:
        raise ValueError(f"network.transport: got {transport!r}, wanted one of {', '.join(TRANSPORTS)}")


def _difference(
    name: str, tensor: torch.Tensor, start: Mapping[str, torch.Tensor], rest: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Δ + e of one tensor, fp64 on the CPU."""
    _same_shape(name, tensor, start)
    found = tensor.detach().to("cpu", torch.float64) - start[name].detach().to("cpu", torch.float64)
    if name in rest:
        _same_shape(name, tensor, rest)
        found += rest[name].detach().to("cpu", torch.float64)
    return _finite(name, found)


def _same_shape(name: str, tensor: torch.Tensor, other: Mapping[str, torch.Tensor]) -> None:
    got = tuple(other[name].shape) if name in other else "none"
    if got != tuple(tensor.shape):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)} and {got} before it, wanted the same")


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: not finite (NaN or infinity); wanted finite values")
    return tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A view of shape (rows, values): along the shorter side of a matrix; a vector or a number is one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    if tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]:
        return tensor.T
    return tensor.flatten(1)


def _packed(name: str, difference: torch.Tensor, transport: Transport) -> LoraState:
    if transport == "bf16":
        return {name: _finite(name, difference.float().to(torch.bfloat16))}
    rows = _rows(difference)
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scales = _finite(name, (largest / LEVELS).float())
    steps = scales.double()[:, None]
    codes = torch.where(steps > 0, rows / steps, torch.zeros_like(rows)).round().clamp(-LEVELS, LEVELS)
    return {name: _like(codes.to(torch.int8), difference), name + SCALES: scales}


def _unpacked(name: str, tensors: Mapping[str, torch.Tensor], transport: Transport) -> torch.Tensor:
    """What travelled of one difference, in fp64."""
    if transport == "bf16":
        return tensors[name].double()
    rows = _rows(tensors[name]).double() * tensors[name + SCALES].double()[:, None]
    return _like(rows, tensors[name])


def _like(rows: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """What `_rows` made of a tensor, back in the tensor's shape, contiguous."""
    turned = tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]
    return (rows.T if turned else rows.reshape(tensor.shape)).contiguous()


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
