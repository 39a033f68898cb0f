"""Generated answers of the base model and of departments' adapters to held-out prompts, for people to read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.state import clients_by_department
from fl_lightning.modeling.generation.generate import generate, split
from fl_lightning.state import LoraState
from fl_lightning.training.local_clients import LocalClients


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and the answers to it.

    Attributes:
        client_id: whose record it is.
        prompt: as the model sees it.
        reference: the record's answer.
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


def split_prompt(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, answer) of a record, see `split`; the two halves of a record without a prompt.

    Example:
        >>> text = Example(torch.tensor([1, 2, 3, 4]), torch.tensor([False, True, True, True]))
        >>> [part.tolist() for part in split_prompt(text)]
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
        clients: with the model that takes the adapters.
        tokenizer: of the model.
        data: {client_id: records}.
        initial: the initial adapter, with which the model equals the base model.
        adapters: {department: its adapter}.
        count: prompts per department, taken from its clients in turn.
        max_new_tokens: of an answer.
    """
    members = clients_by_department(data)
    records = {name: _first_records(data, members.get(name, []), count) for name in sorted(adapters)}
    parts = {department: [split_prompt(example) for _, example in rows] for department, rows in records.items()}
    prompts = {department: [prompt for prompt, _ in pairs] for department, pairs in parts.items()}

    def answers(state: LoraState, questions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not questions:
            return []
        with clients.with_adapter(state) as model:
            ends = find_end_tokens(tokenizer, getattr(model, "generation_config", None))
            return generate(model, questions, max_new_tokens=max_new_tokens, ends=ends)

    base_answers = iter(answers(initial, list(itertools.chain.from_iterable(prompts.values()))))  # in one batch
    samples: list[Sample] = []
    for department, adapter in sorted(adapters.items()):
        adapter_answers = answers(adapter, prompts[department])
        for (client_id, _), pair, answer in zip(records[department], parts[department], adapter_answers, strict=True):
            ids = (*pair, next(base_answers), answer)
            samples.append(Sample(client_id, *(tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids)))
    return samples


def _first_records(data: Mapping[str, ClientData], client_ids: Sequence[str], count: int) -> list[tuple[str, Example]]:
    """(client, held-out record) of the clients in turn, at most `count`; no more clients are looked up."""
    records = ((c, data[c].eval[i]) for i in range(count) for c in client_ids if i < len(data[c].eval))
    return list(itertools.islice(records, count))


def as_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """The contents of ``samples.json``."""
    return {"samples": [{"department": sample.department, **asdict(sample)} for sample in samples]}


def as_markdown(samples: Sequence[Sample]) -> str:
    """A table in which no text can leave its cell."""
    lines = ["| prompt | reference | base | adapter |", "|---|---|---|---|"]
    for sample in samples:
        cells = [_cell(text) for text in (sample.prompt, sample.reference, sample.base, sample.adapter)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return " ".join(escaped.split()) or "–"
