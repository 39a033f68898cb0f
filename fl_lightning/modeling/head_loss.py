"""Output head and cross-entropy in chunks of positions, so that a large vocabulary costs no copy of all logits.

At 152,000 tokens the logits of 4,096 targets take 2.5 GB in fp32, and as much again for their gradient. Positions do
not interact in the head, so the loss of a position and its gradient with respect to that position's hidden state can be
computed at once, a chunk at a time; only the gradients are kept, of shape (S, hidden). The backward pass multiplies
them by the weight of each loss. Nothing is computed twice.

The steps between the head and the returned logits (scales, soft caps) are the model's own: for every further chunk its
``forward`` runs again, with its decoder replaced by the output that it has given. All logits are computed at once if
they fit into a chunk, or if the head is trained, spread over processes, or not a module of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.distributed.fsdp import FSDPModule

from fl_lightning.modeling.loss import token_cross_entropy

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**27}
"""Logits of a chunk; of a vocabulary of 152,000 these are 110 positions on a CPU and 883 on a GPU."""
FP16_SCALE = 256.0
"""Factor on gradients of logits in fp16, which would round those of unlikely tokens to 0."""


class TargetLosses(NamedTuple):
    """Results for each of S targets.

    Attributes:
        loss: cross-entropy in nats, fp32, shape (S,).
        correct: 1.0 if the target was the most likely token, shape (S,); 0 while gradients are recorded.
    """

    loss: torch.Tensor
    correct: torch.Tensor


def target_losses(
    base: Any,
    run: Callable[[], torch.Tensor],
    targets: torch.Tensor,
    keep: torch.Tensor | None = None,
    chunk_logits: int | None = None,
) -> TargetLosses:
    """Losses of a forward pass.

    Args:
        base: the transformers model.
        run: runs it (perhaps through PEFT) and returns its logits: shape (1, S, V), or (rows, T, V) with `keep`.
        targets: shape (S,), int64.
        keep: the positions of the targets, counted row after row, shape (S,); None if the logits are of those only.
        chunk_logits: limit of logits that exist at once; None takes that of the device.
    """
    head = base.get_output_embeddings()
    limit = chunk_logits or CHUNK_LOGITS.get(targets.device.type, CHUNK_LOGITS["cpu"])
    calls = _Calls(base, head, targets, keep, limit)
    with calls.watched():
        logits = run()
    if calls.hidden is None or calls.chunk is None:
        rows = logits.flatten(0, 1)
        return _losses(rows if keep is None or len(rows) == len(targets) else rows.index_select(0, keep), targets)
    size, parts = calls.size, []
    gradients = torch.empty_like(calls.hidden) if calls.hidden.requires_grad and torch.is_grad_enabled() else None
    scale = FP16_SCALE if logits.dtype is torch.float16 else 1.0
    for start in range(0, len(targets), size):
        positions = slice(start, start + size)
        chunk = calls.chunk if start == 0 else calls.detached(positions)
        # flatten, not an index, whose backward fills another matrix of zeros
        part = _losses((logits if start == 0 else calls.logits_of(chunk)).flatten(0, 1), targets[positions])
        logits = None  # type: ignore[assignment]
        if gradients is not None:
            weights = torch.full_like(part.loss, scale)
            (gradients[:, positions],) = torch.autograd.grad([part.loss], [chunk], [weights])
            part = TargetLosses(part.loss.detach(), part.correct)
        parts.append(part)
    loss, correct = (torch.cat(values) if len(values) > 1 else values[0] for values in zip(*parts, strict=True))
    if gradients is not None:
        loss = _PrecomputedGradient.apply(calls.hidden, loss, gradients, scale)  # type: ignore[no-untyped-call]
    return TargetLosses(loss, correct)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> TargetLosses:
    loss = token_cross_entropy(logits, targets)
    if torch.is_grad_enabled():  # unused in training, and argmax costs as much as softmax
        return TargetLosses(loss, torch.zeros_like(loss))
    return TargetLosses(loss, (logits.argmax(-1) == targets).to(loss.dtype))


class _PrecomputedGradient(torch.autograd.Function):
    """Losses whose gradients with respect to the hidden states are known."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, loss: torch.Tensor, gradients: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(gradients)
        ctx.scale = scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * (grads[0] / ctx.scale)[None, :, None]).to(gradients.dtype), None, None, None


class _Calls:
    """A forward pass whose head is given the first chunk of positions, and further ones for the other chunks.

    Attributes:
        hidden: input of the head at the targets, shape (1, S, hidden); None if all logits are computed at once.
        chunk: the part of it, detached, whose logits the forward pass returns.
        size: positions of a chunk.
    """

    def __init__(self, base: Any, head: Any, targets: torch.Tensor, keep: torch.Tensor | None, limit: int) -> None:
        self.hidden: torch.Tensor | None = None
        self.chunk: torch.Tensor | None = None
        self.size = max(1, limit // _vocabulary(base, head))
        self._base, self._head, self._targets, self._keep = base, head, targets, keep
        self._outputs: dict[torch.nn.Module, Any] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within this block the forward pass of the base is cut short at its head."""
        hooks: list[Any] = []
        if isinstance(self._head, torch.nn.Module):
            hooks = [self._head.register_forward_pre_hook(self._select)]
            if self.size < len(self._targets) and not isinstance(self._base, FSDPModule):
                hooks += [m.register_forward_hook(self._note_output) for m in _decoders(self._base, self._head)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_output(self, module: torch.nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if self.hidden is None:
            self._outputs[module] = output

    def _select(self, _: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        x = args[0]
        if self._keep is not None and x.ndim == 3:
            x = x.flatten(0, 1).index_select(0, self._keep)[None]
        if x.shape[:-1] != (1, len(self._targets)):
            return None
        if not self._outputs or not _is_frozen(self._head):
            return (x, *args[1:])
        self.hidden = x
        self.chunk = self.detached(slice(0, self.size))
        return (self.chunk, *args[1:])

    def detached(self, positions: slice) -> torch.Tensor:
        """A part of the hidden states as the leaf of a graph."""
        assert self.hidden is not None
        return self.hidden.detach()[:, positions].requires_grad_(self.hidden.requires_grad)

    def logits_of(self, chunk: torch.Tensor) -> torch.Tensor:
        """What the model makes of hidden states, shape (1, n, hidden) to (1, n, V)."""
        hook = self._head.register_forward_pre_hook(lambda _, args: (chunk, *args[1:]))
        ids = self._targets.new_zeros(1, chunk.shape[1])
        with contextlib.ExitStack() as stack:
            stack.callback(hook.remove)
            for module, output in self._outputs.items():
                stack.enter_context(patch.object(module, "forward", lambda *_, output=output, **__: output))
            logits: torch.Tensor = self._base(input_ids=ids, use_cache=False).logits
        return logits


def _decoders(base: Any, head: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules of which one computes the input of the head: its neighbors, or the decoder inside one of them."""
    owner = next((m for m in base.modules() if any(child is head for child in m.children())), base)
    modules = [child for child in owner.children() if child is not head]
    decoder = base.get_decoder()
    return modules if decoder is base or any(decoder is m for m in modules) else [*modules, decoder]


def _is_frozen(head: torch.nn.Module) -> bool:
    return not any(p.requires_grad for p in head.parameters())


def _vocabulary(base: Any, head: Any) -> int:
    weight = getattr(head, "weight", None)
    return int(getattr(head, "out_features", 0) or (weight.shape[0] if weight is not None else base.config.vocab_size))
