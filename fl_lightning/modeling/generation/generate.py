"""Greedy answers to prompts, several prompts in one batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.limits import is_recurrent, max_positions


def split(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, answer): the last response of a tokenized record and everything before it, as 1-D token ids.

    Example:
        >>> e = Example(torch.tensor([1, 2, 3, 4, 5]), torch.tensor([False, True, False, True, True]))
        >>> [part.tolist() for part in split(e)]
        [[1, 2, 3], [4, 5]]
    """
    gaps = (~example.supervised).nonzero().squeeze(1)
    start = int(gaps[-1]) + 1 if len(gaps) else 0
    if start == len(example):  # text after the last response is no answer
        last = int(example.supervised.nonzero()[-1])
        return split(Example(example.ids[: last + 1], example.supervised[: last + 1]))
    return example.ids[:start], example.ids[start:]


@torch.inference_mode()
def generate(
    model: Any, prompts: Sequence[torch.Tensor], *, max_new_tokens: int, ends: Collection[int], batch_size: int = 16
) -> list[torch.Tensor]:
    """The greedy continuation of each prompt, up to and without the end token, or to the model's last position.

    Args:
        model: a transformers or PEFT causal language model, with its active adapter.
        prompts: token ids, each 1-D and not empty.
        max_new_tokens: maximum length of an answer.
        ends: tokens that end an answer, see `fl_lightning.data.end_tokens`; none always generates `max_new_tokens`.
        batch_size: prompts per forward pass, longest first.

    Returns:
        Token ids on the CPU, in the order of the prompts.

    Raises:
        ValueError: if a prompt is empty.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts: expected at least one token in each, got an empty one")
    answers: list[torch.Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    filler = next(iter(ends), 0)
    positions = max_positions(model.config) or math.inf
    room = {i: min(max_new_tokens, positions - len(prompts[i])) for i in order}
    cut = [i for i in order if 0 < room[i] < max_new_tokens]  # by length, so that no other answer is cut
    whole = [i for i in order if room[i] == max_new_tokens]
    for batch in (
        *batches(cut, prompts, batch_size, same_length=True),
        *batches(whole, prompts, batch_size, same_length=is_recurrent(model)),
    ):
        ids, mask = pad_left([prompts[i] for i in batch], filler)
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=int(room[batch[0]]),
            do_sample=False,
            num_beams=1,
            eos_token_id=list(ends) or None,
            pad_token_id=filler,
        )[:, ids.shape[1] :].cpu()
        for row, i in enumerate(batch):
            stop = next((place for place, token in enumerate(out[row].tolist()) if token in ends), None)
            answers[i] = out[row][:stop]
    model.train(was_training)
    return answers


def pad_left(prompts: Sequence[torch.Tensor], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, attention mask) of prompts in one batch, each of shape (prompts, length of the longest).

    Example:
        >>> ids, mask = pad_left([torch.tensor([5, 6]), torch.tensor([7])], filler=0)
        >>> ids.tolist(), mask.tolist()
        ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), filler)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def batches(
    order: Sequence[int], prompts: Sequence[torch.Tensor], batch_size: int, *, same_length: bool
) -> Iterator[list[int]]:
    """Cut the indices of prompts into batches, of prompts of one length if `same_length`."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or (same_length and len(prompts[i]) != len(prompts[batch[0]]))):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
