"""The next token from a row of logits: the most likely one, or a draw with temperature, top-p and penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, with the parameters of OpenAI's API.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p: draw only from the most likely tokens that have this share of the probability (Holtzman et al. 2020,
            arXiv 1904.09751).
        presence_penalty: subtracted from the logit of a token that was produced before.
        frequency_penalty: subtracted once for each time that it was produced.
        seed: of the draws.
        logit_bias: (token, number added to its logit) pairs.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        sampling: the parameters.

    Example:
        >>> Sampler(Sampling(temperature=0)).sample(torch.tensor([0.1, 0.7, 0.2]))
        1
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether it takes the most likely token of the unchanged logits."""
        return self._sampling.temperature == 0 and not self._has_penalty and not self._sampling.logit_bias

    @property
    def _has_penalty(self) -> bool:
        return bool(self._sampling.presence_penalty or self._sampling.frequency_penalty)

    def sample(self, logits: torch.Tensor) -> int:
        """The next token.

        Args:
            logits: of the whole vocabulary, shape (V,).
        """
        logits = logits.to("cpu", torch.float32)
        if self._has_penalty and self._counts:
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float64)
            penalties = self._sampling.presence_penalty + counts * self._sampling.frequency_penalty
            logits = logits.clone()
            logits[list(self._counts)] -= penalties.to(torch.float32)
        if self._sampling.logit_bias:
            tokens, biases = zip(*self._sampling.logit_bias, strict=True)
            logits = logits.clone()
            logits[list(tokens)] += torch.tensor(biases, dtype=torch.float32)
        token = int(logits.argmax()) if self._sampling.temperature == 0 else self._draw(logits)
        if self._has_penalty:
            self._counts[token] += 1
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        logits = logits.double()  # a temperature near 0 makes numbers that overflow fp32
        probabilities = torch.softmax((logits - logits.max()) / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered >= self._sampling.top_p] = 0  # the one that crosses the share is kept
            return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def sample_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every row, with at most one transfer for the greedy rows and one for the others.

    Args:
        logits: shape (rows, V).
        samplers: one per row.
    """
    tokens = logits.argmax(dim=-1).tolist() if any(sampler.greedy for sampler in samplers) else [0] * len(samplers)
    drawn_rows = [row for row, sampler in enumerate(samplers) if not sampler.greedy]
    if drawn_rows:
        drawn_logits = logits if len(drawn_rows) == len(samplers) else logits[drawn_rows]
        for row, row_logits in zip(drawn_rows, drawn_logits.to("cpu", torch.float32), strict=True):
            tokens[row] = samplers[row].sample(row_logits)
    return [int(token) for token in tokens]
