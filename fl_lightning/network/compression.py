"""Updates in fewer bytes: differences from the start in 16 or 8 bits, and the rounding error added to the next one.

Error feedback (Seide, Fu, Droppo, Li, Yu 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs"; Karimireddy, Rebjock, Stich, Jaggi 2019, arXiv 1901.09847): round t sends
``Q(Δ_t + e_t)`` and keeps ``e_{t+1} = Δ_t + e_t − Q(Δ_t + e_t)``, so that ``Σ Q = Σ Δ − e_T``: over all rounds only the
last error is lost. The error stays at the site, by round; a round that is repeated starts from the error before it.

=========  ===============================================  =======================================
transport  tensors sent for each parameter                  error of a value
=========  ===============================================  =======================================
fp32       the state itself                                 none
bf16       Δ + e in bfloat16                                up to 1/256 of the value
int8       codes from −127 to 127 and float32 scales        up to 1/254 of its row's largest value
=========  ===============================================  =======================================

An int8 row runs along the longer side, so each of the r components has its scale: rows of A of shape (r, in_features),
columns of B of shape (out_features, r).

Local differential privacy is applied before; rounding its result costs no more privacy (post-processing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch

from fl_lightning.config.network import Transport
from fl_lightning.state import LoraState, norm, num_bytes

TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
SCALE_SUFFIX = "|scale"
"""Added to the name of a tensor for its scales; no parameter's name ends so."""
MAX_CODE = 127


@dataclass(frozen=True)
class Encoded:
    """An update as it is sent, and its rounding error.

    Attributes:
        tensors: sent; names, dtypes and shapes as `layout` says.
        error_feedback: e, fp32, for the next round's `encode`; it stays at the site.
        relative_error: ‖e‖ / ‖Δ + e_before‖; 0 if there is nothing to send.
        num_bytes: of the tensors.
    """

    tensors: LoraState
    error_feedback: LoraState = field(default_factory=dict)
    relative_error: float = 0.0
    num_bytes: int = 0


def encode(
    state: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor],
    transport: Transport,
    error_feedback: Mapping[str, torch.Tensor] | None = None,
) -> Encoded:
    """Encode an update for sending.

    Args:
        state: of the update; only the parameters to send.
        start: from which the update was trained; at least these parameters.
        transport: fp32, bf16 or int8.
        error_feedback: e of the round before; None at the start, and with combiners that draw a new start every round.
            Its entries for parameters that are not sent now are kept for the round that sends them.

    Raises:
        ValueError: for an unknown transport, names or shapes that differ, or a value that is not finite.

    Example:
        >>> start = {"lora_A": torch.zeros(1, 2)}
        >>> sent = encode({"lora_A": torch.tensor([[1.27, 0.014]])}, start, "int8")
        >>> sent.tensors["lora_A"].tolist(), round(sent.tensors["lora_A|scale"].item(), 6), sent.num_bytes
        ([[127, 1]], 0.01, 6)
        >>> round(sent.error_feedback["lora_A"][0, 1].item(), 6)
        0.004
    """
    _check_transport(transport)
    last_error = error_feedback or {}
    if transport == "fp32":
        plain = {name: _check_finite(name, state[name].detach().to("cpu", torch.float32)) for name in sorted(state)}
        for name, tensor in plain.items():
            _check_same_shape(name, tensor, start)
        return Encoded(plain, dict(last_error), 0.0, num_bytes(plain))
    differences = {name: _difference(name, state[name], start, last_error) for name in sorted(state)}
    tensors: LoraState = {}
    errors: LoraState = {}
    for name, difference in differences.items():
        tensors.update(_quantize(name, difference, transport))
        errors[name] = (difference - _dequantize(name, tensors, transport)).float()
    length = norm(differences)
    relative_error = norm(errors) / length if length else 0.0
    return Encoded(tensors, {**last_error, **errors}, relative_error, num_bytes(tensors))


def decode(tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], transport: Transport) -> LoraState:
    """Decode an update.

    Args:
        tensors: as received, from anybody: names, dtypes, shapes and values are checked.
        start: from which the update was trained; exactly the parameters that are sent.
        transport: fp32, bf16 or int8.

    Returns:
        The state, fp32 on the CPU.

    Raises:
        ValueError: if the tensors are not what `layout` says; the message names the first difference.

    Example:
        >>> start = {"lora_A": torch.ones(1, 2)}
        >>> sent = encode({"lora_A": torch.tensor([[2.0, 0.5]])}, start, "bf16")
        >>> decode(sent.tensors, start, "bf16")
        {'lora_A': tensor([[2.0000, 0.5000]])}
    """
    expected = layout(start, transport)
    if different := sorted(expected.keys() ^ tensors.keys(), key=str):
        which = "missing" if different[0] in expected else "unknown"
        raise ValueError(f"{ascii(str(different[0]))[1:-1][:80]}: {which} in an update by {transport}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {got}")
        if tensor.is_floating_point():
            _check_finite(name, tensor)
        if name.endswith(SCALE_SUFFIX) and bool((tensor < 0).any()):
            raise ValueError(f"{name}: expected scales of at least 0, got a negative one")
    if transport == "fp32":
        return {name: tensors[name].detach().clone() for name in sorted(start)}
    return {
        name: _check_finite(name, (start[name].double() + _dequantize(name, tensors, transport)).float())
        for name in sorted(start)
    }


def layout(start: Mapping[str, torch.Tensor], transport: Transport) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """{name: (dtype, shape)} of the tensors that are sent for an update from this start.

    Example:
        >>> layout({"lora_B": torch.zeros(6, 2)}, "int8")
        {'lora_B': (torch.int8, (6, 2)), 'lora_B|scale': (torch.float32, (2,))}
    """
    _check_transport(transport)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[transport]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in sorted(start):
        shape = tuple(start[name].shape)
        tensors[name] = (dtype, shape)
        if transport == "int8":
            tensors[name + SCALE_SUFFIX] = (torch.float32, (_rows(start[name]).shape[0],))
    return tensors


def encoded_num_bytes(start: Mapping[str, torch.Tensor], transport: Transport) -> int:
    """Bytes of the tensors of an update from this start."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout(start, transport).values())


def _check_transport(transport: str) -> None:
    if transport not in TRANSPORTS:
        raise ValueError(f"network.transport: expected one of {', '.join(TRANSPORTS)}, got {transport!r}")


def _difference(
    name: str, tensor: torch.Tensor, start: Mapping[str, torch.Tensor], last_error: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Δ + e of one tensor, fp64 on the CPU."""
    _check_same_shape(name, tensor, start)
    difference = tensor.detach().to("cpu", torch.float64) - start[name].detach().to("cpu", torch.float64)
    if name in last_error:
        _check_same_shape(name, tensor, last_error)
        difference += last_error[name].detach().to("cpu", torch.float64)
    return _check_finite(name, difference)


def _check_same_shape(name: str, tensor: torch.Tensor, reference: Mapping[str, torch.Tensor]) -> None:
    expected = tuple(reference[name].shape) if name in reference else "no such tensor"
    if expected != tuple(tensor.shape):
        raise ValueError(f"{name}: expected the shape before it, {expected}, got {tuple(tensor.shape)}")


def _check_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: not finite (NaN or infinity); expected finite values")
    return tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A view of shape (rows, values): the shorter side of a matrix is first; a vector or a number is one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    if tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]:
        return tensor.T
    return tensor.flatten(1)


def _quantize(name: str, difference: torch.Tensor, transport: Transport) -> LoraState:
    """The tensors that are sent for one difference: bf16, or int8 codes and their scales."""
    if transport == "bf16":
        return {name: _check_finite(name, difference.float().to(torch.bfloat16))}
    rows = _rows(difference)
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scales = _check_finite(name, (largest / MAX_CODE).float())
    steps = scales.double()[:, None]
    codes = torch.where(steps > 0, rows / steps, torch.zeros_like(rows)).round().clamp(-MAX_CODE, MAX_CODE)
    return {name: _undo_rows(codes.to(torch.int8), difference), name + SCALE_SUFFIX: scales}


def _dequantize(name: str, tensors: Mapping[str, torch.Tensor], transport: Transport) -> torch.Tensor:
    """The difference that was sent under this name, fp64."""
    if transport == "bf16":
        return tensors[name].double()
    rows = _rows(tensors[name]).double() * tensors[name + SCALE_SUFFIX].double()[:, None]
    return _undo_rows(rows, tensors[name])


def _undo_rows(rows: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`_rows` undone: in the shape of `tensor`, contiguous."""
    transposed = tensor.ndim == 2 and tensor.shape[1] < tensor.shape[0]
    return (rows.T if transposed else rows.reshape(tensor.shape)).contiguous()
