"""Batches without padding: the tokens of all sequences, of one client or of several, in one row.

Linear layers need no batch dimension, so padding would only waste work; attention is kept inside each sequence by its
length (`fl_lightning.modeling.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from fl_lightning.data.tokenization import Example
from fl_lightning.data.transfer import to_device

TENSORS = ("input_ids", "position_ids", "keep", "targets", "owners", "starts")
"""Names of a batch's tensors."""


@dataclass  # not frozen: Fabric copies batches field by field under mixed precision
class PackedBatch:
    """Sequences of K clients in one row of T tokens, S of which are targets.

    Attributes:
        input_ids: shape (1, T), int64.
        position_ids: shape (1, T); starts at 0 in every sequence.
        keep: positions whose next token is supervised, shape (S,).
        targets: those next tokens, shape (S,).
        owners: client index in 0 … K − 1 of each target, shape (S,).
        starts: the first token of each sequence, then T; int32.
        lengths: tokens of each sequence, in row order.
        longest: tokens of the longest sequence, or a bound of it.
        client_tokens: tokens of each client, in row order; a client without sequences has 0.
        client_targets: targets of each client.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    starts: torch.Tensor
    lengths: tuple[int, ...]
    longest: int
    client_tokens: tuple[int, ...]
    client_targets: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.input_ids.shape[1])

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on another device."""
        moved: dict[str, Any] = {name: to_device(getattr(self, name), device) for name in TENSORS}
        return replace(self, **moved)

    def split(self) -> list[PackedBatch]:
        """The batch as batches of one sequence each, of the same K clients."""
        starts = [0, *accumulate(self.lengths)]
        owners = torch.arange(len(self.client_tokens)).repeat_interleave(torch.tensor(self.client_tokens))
        parts = []
        for start, stop in pairwise(starts):
            chosen = (self.keep >= start) & (self.keep < stop)
            owner = int(owners[start])
            counts = [0] * len(self.client_tokens)
            counts[owner] = int(chosen.sum())
            tokens = [0] * len(self.client_tokens)
            tokens[owner] = stop - start
            parts.append(
                PackedBatch(
                    self.input_ids[:, start:stop],
                    self.position_ids[:, start:stop],
                    self.keep[chosen] - start,
                    self.targets[chosen],
                    self.owners[chosen],
                    torch.tensor([0, stop - start], dtype=torch.int32),
                    (stop - start,),
                    stop - start,
                    tuple(tokens),
                    tuple(counts),
                )
            )
        return parts


def real_tokens(lengths: Sequence[int]) -> torch.Tensor:
    """Where the tokens of a row are if its sequences are padded on the right: True there, shape (sequences, longest).

    Example:
        >>> real_tokens([1, 2]).tolist()
        [[True, False], [True, True]]
    """
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def token_positions(lengths: Sequence[int]) -> torch.Tensor:
    """Where the tokens of a row are among the positions of `real_tokens`, counted row after row, shape (T,).

    Found on the host, so that no device has to be waited for.

    Example:
        >>> token_positions([1, 2]).tolist()
        [0, 2, 3]
    """
    return real_tokens(lengths).flatten().nonzero().squeeze(1)


def pack(clients: Sequence[Sequence[Example]]) -> PackedBatch:
    """Pack the examples of K clients into one row, client after client.

    Raises:
        ValueError: if there is no example at all.

    Example:
        >>> a = Example(torch.tensor([5, 6, 7]), torch.tensor([False, True, True]))
        >>> batch = pack([[a], [a, a]])
        >>> batch.num_tokens, batch.keep.tolist(), batch.targets.tolist(), batch.owners.tolist()
        (9, [0, 1, 3, 4, 6, 7], [6, 7, 6, 7, 6, 7], [0, 0, 1, 1, 1, 1])
    """
    examples = [example for client in clients for example in client]
    if not examples:
        raise ValueError("clients: expected at least one example, got none")
    # A few operations on the whole row, whatever the number of its sequences.
    ids = torch.cat([e.ids for e in examples])
    predicted = torch.cat([e.supervised for e in examples]).nonzero().squeeze(1)
    lengths = torch.tensor([len(e) for e in examples])
    ends = lengths.cumsum(0)
    client_tokens = [sum(map(len, client)) for client in clients]
    token_owners = torch.arange(len(clients)).repeat_interleave(torch.tensor(client_tokens))
    owners = token_owners.index_select(0, predicted)
    return PackedBatch(
        input_ids=ids[None],
        position_ids=(torch.arange(len(ids)) - (ends - lengths).repeat_interleave(lengths))[None],
        keep=predicted - 1,
        targets=ids.index_select(0, predicted),
        owners=owners,
        starts=torch.nn.functional.pad(ends, (1, 0)).int(),
        lengths=tuple(lengths.tolist()),
        longest=int(lengths.max()),
        client_tokens=tuple(client_tokens),
        client_targets=tuple(owners.bincount(minlength=len(clients)).tolist()),
    )


def pack_examples(examples: Sequence[Example]) -> PackedBatch:
    """`pack` of a single client: the collate function of a DataLoader."""
    return pack([examples])


def epoch_order(num_examples: int, batch_size: int, seed: int) -> list[list[int]]:
    """Indices of the batches of an epoch: a seeded permutation, cut into batches; the last may be smaller.

    Example:
        >>> [len(batch) for batch in epoch_order(10, 4, seed=0)]
        [4, 4, 2]
    """
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[i : i + batch_size] for i in range(0, num_examples, batch_size)]
