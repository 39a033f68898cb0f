"""Continuous batching: answers grow one token at a time, and join and leave between tokens.

An answer has one row of the batch, or with a mixture one for each adapter; these continue with the same tokens. Rows of
different lengths are right-aligned in one key-value cache, with padding on the left that the attention mask hides. New
prompts are read together (their keys and values are computed), then join the cache; finished answers leave it.
After Yu et al. 2022 (Orca, OSDI), without paging.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.adapter_mixture import ServedModel, adapters_of, mix_rows
from fl_lightning.modeling.generation.token_sampling import Sampler, sample_tokens


@dataclass(eq=False)
class Answer:
    """A running answer.

    Attributes:
        prompt: token ids, at least one.
        model: the adapter or mixture that answers.
        max_new_tokens: limit of its tokens, at least 1.
        sampler: draws its tokens.
        tokens: the answer so far, without the end token.
        finish: ``stop`` once the model has ended it, ``length`` at the limit; None before.
    """

    prompt: Sequence[int]
    model: ServedModel
    max_new_tokens: int
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None

    @property
    def rows(self) -> Sequence[BankedAdapter]:
        """The adapters of its rows in a batch."""
        return adapters_of(self.model)


class Decoder:
    """Answers many prompts at once, each with a separate adapter or mixture.

    Args:
        model: the PEFT model that `bank` is attached to.
        bank: gives each row its adapter.
        ends: tokens that end an answer.

    Attributes:
        answers: those that are not finished.

    Example:
        >>> from fl_lightning import ModelConfig, create_lora_model, load_base_model
        >>> from fl_lightning.modeling.generation.token_sampling import Sampling
        >>> model = create_lora_model(load_base_model(ModelConfig(), dtype=torch.float32)[0])
        >>> bank = AdapterBank(model)
        >>> answer = Answer([5, 6], BankedAdapter({}), 3, Sampler(Sampling(temperature=0)))
        >>> with bank.attached():
        ...     decoder = Decoder(model, bank, ends=[2])
        ...     decoder.add([answer])
        ...     while decoder.answers:
        ...         _ = decoder.step()
        >>> len(answer.tokens), answer.finish
        (3, 'length')
    """

    def __init__(self, model: Any, bank: AdapterBank, ends: Collection[int]) -> None:
        self._model, self._bank, self._ends = model.get_base_model(), bank, frozenset(ends)
        self._parameters = inspect.signature(self._model.forward).parameters.keys()
        self._cache_name = "cache" if "cache" in self._parameters else "past_key_values"  # transformers 5.40 drops it
        self._device = next(model.parameters()).device
        self.answers: list[Answer] = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)

    @torch.inference_mode()
    def add(self, answers: Sequence[Answer]) -> None:
        """Read the prompts of new answers, produce their first tokens, and add unfinished ones to the batch.

        Prompts of similar length are read together, so that no row is more than half padding.
        """
        waiting = sorted(answers, key=lambda answer: len(answer.prompt))
        while waiting:
            longest = len(waiting[-1].prompt)
            first = next(i for i, answer in enumerate(waiting) if 2 * len(answer.prompt) >= longest)
            self._read(waiting[first:])
            waiting = waiting[:first]

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Produce one more token for every answer; finished ones leave.

        Returns:
            All answers before this step, each with its new token or its `finish`.
        """
        answers = self.answers
        if not answers:
            return []
        self._bank.set_rows([adapter for answer in answers for adapter in answer.rows])
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        ids = torch.tensor([[answer.tokens[-1]] for answer in answers for _ in answer.rows], device=self._device)
        logits = self._forward(ids, self._mask, self._mask.sum(1, keepdim=True) - 1, self._cache)
        self._extend(answers, logits)
        self._keep([i for i, answer in enumerate(answers) if answer.finish is None])
        return answers

    def drop(self, answers: Collection[Answer]) -> None:
        """Remove answers whose clients no longer wait."""
        dropped = set(answers)
        self._keep([i for i, answer in enumerate(self.answers) if answer not in dropped])

    def _read(self, new: Sequence[Answer]) -> None:
        width = max(len(answer.prompt) for answer in new)
        prompts = [answer.prompt for answer in new for _ in answer.rows]
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask, cache = ids.to(self._device), mask.to(self._device), DynamicCache()
        self._bank.set_rows([adapter for answer in new for adapter in answer.rows])
        self._extend(new, self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache))
        unfinished = [i for i, answer in enumerate(new) if answer.finish is None]
        if unfinished:
            self._join([new[i] for i in unfinished], *_select_rows(cache, mask, _rows_of(new, unfinished)))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits after the last token of each row, shape (rows, V); the cache grows."""
        extra = {"position_ids": positions, "logits_to_keep": 1}
        supported = {name: value for name, value in extra.items() if name in self._parameters}
        supported[self._cache_name] = cache
        out = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **supported)
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _extend(self, answers: Sequence[Answer], logits: torch.Tensor) -> None:
        """Add a token to each answer, from the logits of the rows of all of them."""
        logits = mix_rows(logits, [answer.model for answer in answers])
        tokens = sample_tokens(logits, [answer.sampler for answer in answers])
        for answer, token in zip(answers, tokens, strict=True):
            if token in self._ends:
                answer.finish = "stop"
                continue
            answer.tokens.append(token)
            if len(answer.tokens) >= answer.max_new_tokens:
                answer.finish = "length"

    def _join(self, new: list[Answer], cache: Any, mask: torch.Tensor) -> None:
        if not self.answers:
            self.answers, self._cache, self._mask = new, cache, mask
            return
        width = max(mask.shape[1], self._mask.shape[1])
        joined = DynamicCache()
        for number, (old, more) in enumerate(zip(self._cache.layers, cache.layers, strict=True)):
            keys, values = (
                torch.cat([_pad_left(getattr(old, part), width), _pad_left(getattr(more, part), width)])
                for part in ("keys", "values")
            )
            joined.update(keys, values, number)
        self._mask = torch.cat([_pad_mask(self._mask, width), _pad_mask(mask, width)])
        self.answers, self._cache = self.answers + new, joined

    def _keep(self, remaining: list[int]) -> None:
        if len(remaining) == len(self.answers):
            return
        rows = _rows_of(self.answers, remaining)
        self.answers = [self.answers[i] for i in remaining]
        if remaining:
            self._cache, self._mask = _select_rows(self._cache, self._mask, rows)
        else:
            self._cache, self._mask = DynamicCache(), self._mask[:0, :0]


def _rows_of(answers: Sequence[Answer], selected: Sequence[int]) -> list[int]:
    """Indices of the rows of the selected answers."""
    ends = list(itertools.accumulate(len(answer.rows) for answer in answers))
    return [row for i in selected for row in range(ends[i] - len(answers[i].rows), ends[i])]


def _select_rows(cache: Any, mask: torch.Tensor, rows: list[int]) -> tuple[Any, torch.Tensor]:
    """Rows of a cache and of its mask, without the columns that are padding in all of them."""
    index = torch.tensor(rows, device=mask.device)
    mask = mask[index]
    start = int(mask.any(0).int().argmax())
    selected = DynamicCache()
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys[index, :, start:], layer.values[index, :, start:], number)
    return selected, mask[:, start:]


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    """Keys or values of shape (rows, heads, length, d), padded on the left with zeros to `width`."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _pad_mask(mask: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))
