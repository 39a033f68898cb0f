"""The next token from a row of logits: the likeliest, or one drawn by temperature, top-p and penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, in the terms of OpenAI's API.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: of the likeliest tokens, those that make up this share of the probability (Holtzman et al. 2020).
        presence_penalty: taken off the logit of a token that was produced before.
        frequency_penalty: taken off for each time that it was.
        seed: of the draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.

    Example:
        >>> Sampler(Sampling(temperature=0)).choose(torch.tensor([0.1, 0.7, 0.2]))
        1
    """

    def __init__(self, sampling: Sampling) -> None:
        self._how = sampling
        self._produced: Counter[int] = Counter()
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token of the logits as they are."""
        return self._how.temperature == 0 and not self._penalised

    @property
    def _penalised(self) -> bool:
        return bool(self._how.presence_penalty or self._how.frequency_penalty)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token.

        Args:
            logits: of the whole vocabulary, shape (V,).
        """
        logits = logits.to("cpu", torch.float32)
        if self._penalised and self._produced:
            logits = logits.clone()
            for token, times in self._produced.items():
                logits[token] -= self._how.presence_penalty + times * self._how.frequency_penalty
        token = int(logits.argmax()) if self._how.temperature == 0 else self._draw(logits)
        if self._penalised:
            self._produced[token] += 1
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        logits = logits.double()  # a temperature near 0 makes numbers that fp32 has no room for
        chances = torch.softmax((logits - logits.max()) / self._how.temperature, dim=-1)
        if self._how.top_p < 1:
            ordered, order = chances.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered >= self._how.top_p] = 0  # the one that crosses the share is kept
            return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(chances, 1, generator=self._generator))


def choose_all(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every row; the greedy ones in one go.

    Args:
        logits: shape (rows, V).
        samplers: one a row.
    """
    likeliest = logits.argmax(dim=-1).tolist() if any(sampler.greedy for sampler in samplers) else [0] * len(samplers)
    return [
        int(likeliest[row]) if sampler.greedy else sampler.choose(logits[row]) for row, sampler in enumerate(samplers)
    ]
