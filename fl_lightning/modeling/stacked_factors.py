"""One LoRA factor of several clients in all layers, as a single matrix with a row for each client.

An optimizer steps it, and its gradient is clipped, in the same few calls for any number of layers and clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

RANK_MULTIPLE = 8
"""Ranks of several clients are padded to a multiple of this, which grouped products need: 16 bytes in bf16."""


class StackedFactor:
    """A, or B, of K clients in L layers.

    Args:
        factors: for each client its factor in each layer; a client's ranks may differ from the others'.
        rank_dim: the dimension that is the rank: 0 in A, 1 in B.
        device: of the parameter.
        trainable: whether it gets gradients.

    Attributes:
        parameter: all values, fp32, shape (K, P); lower ranks are padded with zeros.
    """

    def __init__(
        self, factors: Sequence[Sequence[torch.Tensor]], rank_dim: int, device: torch.device | str, trainable: bool
    ) -> None:
        self._rank_dim = rank_dim
        self._ranks = [[factor.shape[rank_dim] for factor in client] for client in factors]
        padded_ranks = [_padded_rank(ranks) for ranks in zip(*self._ranks, strict=True)]
        rows = [
            torch.cat([_pad(f, rank_dim, r).flatten().float() for f, r in zip(client, padded_ranks, strict=True)])
            for client in factors
        ]
        self._shapes = [
            (rank, factor.shape[1]) if rank_dim == 0 else (factor.shape[0], rank)
            for factor, rank in zip(factors[0], padded_ranks, strict=True)
        ]
        self.sizes = [height * width for height, width in self._shapes]
        self.parameter = torch.nn.Parameter(torch.stack(rows).to(device), trainable)

    def by_layer(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """A matrix of the parameter's shape (K', P), cut into layers: L views, each K' factors of the padded rank."""
        # split, not slicing: its backward pass is one concatenation.
        parts = torch.split(matrix, self.sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def of_client(self, matrix: torch.Tensor, index: int) -> list[torch.Tensor]:
        """One client's row of such a matrix, cut into its factors at its rank in each layer; detached CPU copies."""
        layers = self.by_layer(matrix.detach()[index : index + 1].to("cpu", copy=True))
        return [
            layer[0].narrow(self._rank_dim, 0, rank).clone(memory_format=torch.contiguous_format)
            for layer, rank in zip(layers, self._ranks[index], strict=True)
        ]


def stack_products(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | None], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Products (A, B) of any ranks as one pair of stacks of a common rank.

    Args:
        pairs: G products; None stands for a product of zeros.
        device: of the stacks.

    Returns:
        Shapes (G, r, in_features) and (G, out_features, r), fp32; None if all pairs are None.
    """
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return None
    rank = _padded_rank([0 if pair is None else len(pair[0]) for pair in pairs])
    zeros = (torch.zeros(rank, present[0][0].shape[1]), torch.zeros(len(present[0][1]), rank))
    a, b = (
        torch.stack([_pad((pair or zeros)[factor], factor, rank).float() for pair in pairs]).to(device)
        for factor in (0, 1)
    )
    return a, b


def _padded_rank(ranks: Sequence[int]) -> int:
    """The common rank of factors of these ranks."""
    return ranks[0] if len(ranks) == 1 else -(-max(ranks) // RANK_MULTIPLE) * RANK_MULTIPLE


def _pad(factor: torch.Tensor, rank_dim: int, rank: int) -> torch.Tensor:
    """A factor padded with zeros to a rank."""
    missing = rank - factor.shape[rank_dim]
    if not missing:
        return factor
    return torch.nn.functional.pad(factor, (0, 0, 0, missing) if rank_dim == 0 else (0, missing))
