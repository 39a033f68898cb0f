"""Answers of the base and of a department's adapter to held-out prompts, side by side: something to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.generation.generate import generate, split
from fl_lightning.state import LoraState
from fl_lightning.training.local_clients import LocalClients


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and what is said to it.

    Attributes:
        client_id: whose record it is.
        prompt: as the model sees it.
        reference: the record's own answer.
        base: the base model's answer.
        adapter: the answer of the department's adapter.
    """

    client_id: str
    prompt: str
    reference: str
    base: str
    adapter: str

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]


def cut(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, answer), see `split`; of a record without a prompt the first half is one.

    Example:
        >>> text = Example(torch.tensor([1, 2, 3, 4]), torch.tensor([False, True, True, True]))
        >>> [part.tolist() for part in cut(text)]
        [[1, 2], [3, 4]]
    """
    prompt, answer = split(example)
    if len(prompt) > 1:
        return prompt, answer
    half = max(1, len(example) // 2)
    return example.ids[:half], example.ids[half:]


def take_samples(
    clients: LocalClients,
    tokenizer: Any,
    data: Mapping[str, ClientData],
    initial: LoraState,
    adapters: Mapping[str, LoraState],
    *,
    count: int,
    max_new_tokens: int = 32,
) -> list[Sample]:
    """Greedy answers to the first held-out prompts of each department.

    Args:
        clients: on whose model the adapters are put.
        tokenizer: of the model.
        data: {client_id: records}.
        initial: the fresh adapter, which leaves the base as it is.
        adapters: {department: its adapter}.
        count: prompts a department, dealt evenly to its clients.
        max_new_tokens: of an answer.
    """
    found: list[Sample] = []
    for department, adapter in sorted(adapters.items()):
        own = [client for client in data.values() if client.department == department]
        turns = [(c.client_id, c.eval[i]) for i in range(count) for c in own if i < len(c.eval)][:count]
        parts = [cut(example) for _, example in turns]
        answers: list[list[torch.Tensor]] = []
        for state in (initial, adapter):
            with clients.wearing(state) as model:
                prompts = [prompt for prompt, _ in parts]
                answers.append(
                    generate(model, prompts, max_new_tokens=max_new_tokens, end=tokenizer.eos_token_id) if parts else []
                )
        for (client_id, _), (prompt, right), base, said in zip(turns, parts, *answers, strict=True):
            texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (prompt, right, base, said)]
            found.append(Sample(client_id, *texts))
    return found


def as_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """What stands in ``samples.json``."""
    return {"samples": [{"department": sample.department, **asdict(sample)} for sample in samples]}


def as_markdown(samples: Sequence[Sample]) -> str:
    """A table; nothing in a text can end its cell."""
    lines = ["| prompt | reference | base | adapter |", "|---|---|---|---|"]
    for sample in samples:
        cells = [_cell(text) for text in (sample.prompt, sample.reference, sample.base, sample.adapter)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return " ".join(escaped.split()) or "–"
