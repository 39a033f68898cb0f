"""Rows of a few sizes: padding for what is recorded once and repeated, such as a CUDA graph.

A row is filled up by sequences of a further client, whom nobody asks for a loss: no real token sees them, and their
gradient is zero. Sizes grow in eighths of a power of two, so that few sizes serve all rows and less than an eighth of a
row is padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fl_lightning.data.packing import PackedBatch

STEPS_PER_OCTAVE = 8


@dataclass(frozen=True)
class RowSizes:
    """What a row has, or has room for.

    Attributes:
        tokens: of all sequences.
        targets: of all clients.
        sequences: number of sequences, perhaps empty ones.
        longest: tokens of the longest sequence.
    """

    tokens: int
    targets: int
    sequences: int
    longest: int

    @classmethod
    def of(cls, batch: PackedBatch) -> RowSizes:
        """The sizes of a batch."""
        return cls(batch.num_tokens, len(batch.targets), len(batch.lengths), batch.longest)


def padded_sizes(batch: PackedBatch) -> RowSizes:
    """The sizes that a batch is padded to: one client more, whose sequences have room for the missing targets."""
    sizes = RowSizes.of(batch)
    targets = round_up(sizes.targets)
    tokens = round_up(sizes.tokens + targets - sizes.targets)
    longest = round_up(sizes.longest)
    padding = -(-(tokens - sizes.tokens) // longest)
    return RowSizes(tokens, targets, round_up(sizes.sequences + padding), longest)


def round_up(number: int) -> int:
    """The next number of the form n · 2^k with n in 8 … 15.

    Example:
        >>> [round_up(n) for n in (1, 8, 17, 100, 16000)]
        [8, 8, 18, 104, 16384]
    """
    step = max(1, (1 << (max(number - 1, 1).bit_length() - 1)) // STEPS_PER_OCTAVE)
    return max(STEPS_PER_OCTAVE, -(-number // step) * step)


def pad_row(batch: PackedBatch, sizes: RowSizes | None = None) -> PackedBatch:
    """A batch of K clients as one of K + 1, on the CPU.

    Args:
        batch: on the CPU.
        sizes: with room for the batch and for as many further tokens as targets; None takes `padded_sizes`.
    """
    sizes = sizes or padded_sizes(batch)
    tokens, targets = sizes.tokens - batch.num_tokens, sizes.targets - len(batch.targets)
    whole, rest = divmod(tokens, sizes.longest)
    lengths = [sizes.longest] * whole + [rest] * bool(rest)
    lengths += [0] * (sizes.sequences - len(batch.lengths) - len(lengths))
    if min(tokens, targets) < 0 or tokens < targets or len(batch.lengths) + len(lengths) != sizes.sequences:
        raise ValueError(f"expected sizes with room for {RowSizes.of(batch)} and its padding, got {sizes}")
    positions = torch.arange(tokens) % sizes.longest
    ends = batch.num_tokens + torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, batch.input_ids.new_zeros(1, tokens)], dim=1),
        position_ids=torch.cat([batch.position_ids, positions[None]], dim=1),
        keep=torch.cat([batch.keep, batch.num_tokens + torch.arange(targets)]),
        targets=torch.cat([batch.targets, batch.targets.new_zeros(targets)]),
        owners=torch.cat([batch.owners, torch.full((targets,), len(batch.client_tokens))]),
        starts=torch.cat([batch.starts, ends]),
        lengths=(*batch.lengths, *lengths),
        longest=sizes.longest,
        client_tokens=(*batch.client_tokens, tokens),
        client_targets=(*batch.client_targets, targets),
    )
