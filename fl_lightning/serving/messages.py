"""What the process that speaks HTTP and the one that computes say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.modeling.generation.token_sampling import Sampling


@dataclass(frozen=True)
class Ask:
    """A prompt to be answered.

    Attributes:
        uid: of the answer.
        model: name of the adapter.
        prompt: token ids.
        max_new_tokens: at most so many tokens of an answer.
        sampling: how they are chosen.
        stream: whether tokens are wanted as they come, or all at the end.
    """

    uid: str
    model: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stream: bool


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this answer any more."""

    uid: str


@dataclass(frozen=True)
class Load:
    """Adapters to be read, new ones and such as have changed; answers under way keep the ones that they began with.

    Attributes:
        folders: {model name: folder}.
    """

    folders: Mapping[str, Path]


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        tokens: since the last piece.
        finish: ``stop`` or ``length`` where this is the last one.
        fingerprint: of the adapter that gave it.
        error: why there will be no answer.
    """

    tokens: tuple[int, ...] = ()
    finish: str | None = None
    fingerprint: str = ""
    error: str | None = None
