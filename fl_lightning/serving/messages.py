"""Messages between the HTTP process and the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_lightning.modeling.generation.token_sampling import Sampling
from fl_lightning.storage.personal_models import ModelSource


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to answer.

    Attributes:
        uid: id of the answer.
        model: name of the model.
        prompt: token ids.
        max_new_tokens: the limit for the answer.
        sampling: how tokens are drawn.
        stream: True sends tokens as they are produced, False all of them at the end.
    """

    uid: str
    model: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stream: bool


@dataclass(frozen=True)
class Cancel:
    """The client no longer waits for this answer."""

    uid: str


@dataclass(frozen=True)
class Load:
    """New or changed models to load. Running answers keep the adapters that they started with.

    Attributes:
        sources: {model name: where its adapters are}.
    """

    sources: Mapping[str, ModelSource]


@dataclass(frozen=True)
class TokenChunk:
    """Part of an answer.

    Attributes:
        tokens: those produced since the last chunk.
        finish: ``stop`` or ``length`` in the last chunk.
        fingerprint: of the adapter or mixture that answers.
        error: the reason why there is no answer.
    """

    tokens: tuple[int, ...] = ()
    finish: str | None = None
    fingerprint: str = ""
    error: str | None = None
