"""Dropout from a counter, so that a client's draws depend neither on who shares its row nor on how rows are cut.

Every number has a place: a client's seed, how many tokens the client has trained on before (over all steps of a fit),
the layer, and the feature. It gets the 16-bit draw of that place, whatever else is computed beside it:

    token key     word n of the client's Philox stream (Salmon et al. 2011), for its n-th token
    feature key   word j of the layer's Philox stream, for the features 4 j … 4 j + 3
    draws         SplitMix64's mixing function (Steele, Lea, Flood 2014) of their exclusive or: 64 bits for 4 features

The keys of a row are drawn once on the host; the draws of a layer are a few elementwise operations for all clients
together. A second run of a layer, for activation checkpointing, gets the same draws without any saved state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.data.transfer import to_device
from fl_lightning.seeding import derive_seed

SHIFTS = (30, 27, 31)
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""SplitMix64's constants."""
DRAWS_PER_WORD = 4
RANGE = 2**16
"""Number of values of a draw; the probability is rounded to a multiple of 1 / RANGE."""

Keys = npt.NDArray[np.uint64] | torch.Tensor
"""64-bit keys: a NumPy array for rows on the CPU, whose integer operations are faster, else an int64 tensor."""


def dropout_stream(seed: int) -> np.random.Philox:
    """A client's stream of token keys."""
    return np.random.Philox(seed)


def token_keys(
    streams: Sequence[np.random.Philox], tokens: Sequence[int], device: torch.device | str, padding: int = 0
) -> Keys:
    """The next `tokens[k]` keys of each client k, one after another, then zeros for padding, shape (T, 1)."""
    words = [stream.random_raw(count) for stream, count in zip(streams, tokens, strict=True)]
    words.append(np.zeros(padding, np.uint64))
    return _on_device(np.concatenate(words)[:, None], device)


def feature_keys(layer: str, in_features: int, device: torch.device | str) -> Keys:
    """The keys of a layer's input features, shape (1, ⌈in_features / 4⌉).

    Args:
        layer: its name.
        in_features: size of its input.
        device: of the rows.
    """
    words = -(-in_features // DRAWS_PER_WORD)
    return _on_device(np.random.Philox(derive_seed(0, "dropout", layer)).random_raw(words)[None], device)


def keep_mask(tokens: Keys, features: Keys, in_features: int, p: float) -> torch.Tensor:
    """The dropout mask of a row: 0 with probability p, else 1.

    Args:
        tokens: see `token_keys`.
        features: see `feature_keys`.
        in_features: size of the layer's input.
        p: below 1.

    Returns:
        Shape (T, in_features), uint8, which multiplies fast. Inputs that are kept must be scaled by 1 / (1 − p).
    """
    threshold = round(p * RANGE) - RANGE // 2  # the draws are read as signed
    words: Any = tokens ^ features
    if isinstance(words, torch.Tensor):
        return (mix_tensor(words).view(torch.int16) >= threshold).view(torch.uint8)[:, :in_features]
    keep = mix(words).view(np.int16) >= threshold
    return torch.from_numpy(keep.view(np.uint8)[:, :in_features])


def mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's mixing function, in place."""
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(multiplier)
    words ^= words >> np.uint64(SHIFTS[-1])
    return words


def mix_tensor(words: torch.Tensor) -> torch.Tensor:
    """`mix` of an int64 tensor, in place; the same bits.

    torch shifts int64 with the sign, which the mask removes, and has no shift of uint64.
    """
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        words ^= (words >> shift) & (2 ** (64 - shift) - 1)
        words *= multiplier - 2**64  # as a signed number; both are above 2 ** 63
    words ^= (words >> SHIFTS[-1]) & (2 ** (64 - SHIFTS[-1]) - 1)
    return words


def _on_device(words: npt.NDArray[np.uint64], device: torch.device | str) -> Keys:
    if torch.device(device).type == "cpu":
        return words
    return to_device(torch.from_numpy(words.view(np.int64)), device)
