"""``B_g A_g x`` for several clients on one packed row: each segment of the row has its own factors.

Where torch has a kernel, `torch.nn.functional.grouped_mm` computes all segments in one call, so that the calls of a
step do not grow with the number of clients. Elsewhere there is one product for each segment.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional
from torch.nn.functional import linear

from fl_lightning.data.transfer import to_device

grouped_mm: Any = getattr(functional, "grouped_mm", None)
"""None before torch 2.10."""

GROUPED_CAPABILITIES = (9, 10)
"""Major compute capabilities of GPUs on which torch has a grouped kernel. On others its `grouped_mm` copies the
offsets to the host in every call and waits for the GPU."""
ALIGNMENT = 16
"""Bytes; `grouped_mm` needs rows of all matrices that are multiples of it, and not empty."""


@dataclass(frozen=True)
class Segments:
    """The segments of a packed row of T tokens, in order.

    Attributes:
        sizes: number of tokens of each segment, perhaps 0; their sum is T.
        ends: one past the last token of each segment, int32, on the device of the row.
    """

    sizes: tuple[int, ...]
    ends: torch.Tensor

    @classmethod
    def from_sizes(cls, sizes: Sequence[int], device: torch.device | str) -> Segments:
        """Segments of these sizes.

        Example:
            >>> Segments.from_sizes([2, 0, 3], "cpu").ends.tolist()
            [2, 2, 5]
        """
        ends = torch.tensor(list(accumulate(sizes)), dtype=torch.int32)
        return cls(tuple(sizes), to_device(ends, device))


def low_rank_product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, segments: Segments | None) -> torch.Tensor:
    """``B_g A_g x_t`` for the tokens t of each segment g.

    Args:
        x: shape (…, in_features); the T tokens are in the dimensions before the last.
        a: shape (G, r, in_features), of the dtype of x.
        b: shape (G, out_features, r), of the dtype of x.
        segments: G segments; None if G is 1.

    Returns:
        Shape (…, out_features).
    """
    ends = None if segments is None or len(a) == 1 else segments.ends
    if ends is None or (_has_kernel(x.device, x.dtype) and _is_aligned(a) and _is_aligned(b)):
        product: torch.Tensor = _LowRankProduct.apply(x, a, b, ends)  # type: ignore[no-untyped-call]
        return product
    assert segments is not None
    parts = zip(torch.split(x.flatten(0, -2), list(segments.sizes)), a.unbind(0), b.unbind(0), strict=True)
    return torch.cat([linear(linear(part, down), up) for part, down, up in parts]).view(*x.shape[:-1], -1)


@functools.cache
def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    if grouped_mm is None or device.type not in ("cpu", "cuda"):
        return False
    if device.type == "cpu":
        return dtype in (torch.float32, torch.bfloat16, torch.float16)
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in GROUPED_CAPABILITIES


def _is_aligned(factors: torch.Tensor) -> bool:
    # A size of 0 is a product of rank 0, whose strides the kernel refuses.
    return all(size and size * factors.element_size() % ALIGNMENT == 0 for size in factors.shape[1:])


class _LowRankProduct(torch.autograd.Function):
    """Two products forward and four backward.

    torch's own backward pass takes twice the calls, and refuses gradients that are expanded (stride 0).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
        tokens = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.flatten(0, -2)
        hidden = _multiply(tokens, a.mT, ends)
        ctx.save_for_backward(tokens, hidden, a, b, ends)
        ctx.shape = x.shape
        return _multiply(hidden, b.mT, ends).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, hidden, a, b, ends = ctx.saved_tensors
        x_needs, a_needs, b_needs, _ = ctx.needs_input_grad
        grad = grads[0].contiguous().view(len(tokens), -1)
        b_grad = _outer(grad, hidden, ends) if b_needs else None
        if not (x_needs or a_needs):
            return None, None, b_grad, None
        grad = _multiply(grad, b, ends)
        a_grad = _outer(grad, tokens, ends) if a_needs else None
        x_grad = _multiply(grad, a, ends).view(ctx.shape) if x_needs else None
        return x_grad, a_grad, b_grad, None


def _multiply(x: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """Each segment of x, shape (T, n), times its matrix of shape (G, n, m)."""
    product: torch.Tensor = torch.mm(x, matrices[0]) if ends is None else grouped_mm(x, matrices, offs=ends)
    return product


def _outer(y: torch.Tensor, x: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """``y_gᵀ x_g`` of the tokens of each segment, shape (G, m, n)."""
    product: torch.Tensor = torch.mm(y.t(), x)[None] if ends is None else grouped_mm(y.t(), x, offs=ends)
    return product
