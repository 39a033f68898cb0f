"""Cross-entropy of every position, with a backward pass that reuses the buffer of the forward pass.

``loss_i = − log softmax(logits_i)[target_i]`` has the gradient ``softmax(logits_i) − onehot(target_i)``. torch's
operations allocate a zero matrix for the one-hot part and another for the result; with few positions and a large
vocabulary, these passes over memory take most of the time of the loss.
"""

from __future__ import annotations

from typing import Any

import torch


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        ctx.save_for_backward(log_probabilities, targets)
        ctx.dtype = logits.dtype
        return -log_probabilities.gather(1, targets[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        log_probabilities, targets = ctx.saved_tensors
        gradient = log_probabilities.exp_()  # in place: they are not needed again
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
        return gradient.mul_(grads[0][:, None]).to(ctx.dtype), None


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each position, in fp32; can be differentiated once.

    Args:
        logits: shape (S, vocabulary).
        targets: shape (S,), int64.

    Returns:
        Shape (S,).

    Example:
        >>> token_cross_entropy(torch.zeros(1, 4), torch.tensor([2])).item() == torch.tensor(4.0).log().item()
        True
    """
    loss: torch.Tensor = _TokenCrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return loss
