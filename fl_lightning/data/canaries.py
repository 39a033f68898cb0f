"""Canaries: records that an auditor adds to the clients' training records, each by a fair coin.

A canary has a prompt of its client, so that it looks like the other records, and an answer that no record has. Whether
it was trained on is known to the auditor only, so what a run releases can be tested by guessing the coins
(`fl_lightning.privacy.audit.one_run`). A canary whose coin says in is a training record like any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fl_lightning.config.audit import AuditConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed

Answer = Callable[[Sequence[torch.Tensor], int], list[torch.Tensor]]
"""From prompts, each of shape (length,), and a seed to a generated answer for each."""


@dataclass(frozen=True)
class ClientCanaries:
    """The canaries of one client.

    Attributes:
        records: all of them.
        coins: for each, whether it is among the training records.
    """

    records: tuple[Example, ...]
    coins: tuple[bool, ...]

    @property
    def included(self) -> list[Example]:
        """Those that are training records."""
        return [record for record, coin in zip(self.records, self.coins, strict=True) if coin]


def draw_coins(count: int, client_id: str, seed: int) -> tuple[bool, ...]:
    """A fair coin for each canary of a client.

    Args:
        count: of canaries.
        client_id: whose they are.
        seed: the run seed.

    Example:
        >>> len(draw_coins(5, "hr/client_0", 1234)), set(draw_coins(50, "hr/client_0", 1234))
        (5, {False, True})
    """
    generator = random.Random(derive_seed(seed, "canary_coins", client_id))
    return tuple(bool(generator.getrandbits(1)) for _ in range(count))


def make_canaries(
    data: Mapping[str, ClientData],
    config: AuditConfig,
    *,
    seed: int,
    max_length: int,
    answer: Answer,
    vocabulary: Collection[int],
) -> dict[str, ClientCanaries]:
    """{client_id: canaries}; a client's depend on no other client.

    Args:
        data: {client_id: tokenized records}.
        config: the ``audit`` block.
        seed: the run seed.
        max_length: tokens of a record; prompts are cut at their beginning.
        answer: generates answers by the base model.
        vocabulary: tokens that may be new ones.

    Raises:
        InputError: if a client has too few tokens that none of its records has.
    """
    canaries: dict[str, ClientCanaries] = {}
    for client_id, client in data.items():
        tokens = config.answer_tokens if config.kind == "generated" else 1
        prompts = _prompts(client, config.canaries, max_length - tokens, seed)
        if config.kind == "generated":
            answers = answer(prompts, derive_seed(seed, "canary_answers", client_id))
        else:
            answers = _new_tokens(client, config.canaries, vocabulary, seed)
        records = tuple(_example(prompt, text) for prompt, text in zip(prompts, answers, strict=True))
        canaries[client_id] = ClientCanaries(records, draw_coins(config.canaries, client_id, seed))
    return canaries


def add_canaries(data: Mapping[str, ClientData], canaries: Mapping[str, ClientCanaries]) -> dict[str, ClientData]:
    """The clients with their included canaries behind their other training records."""
    return {
        client_id: replace(client, train=[*client.train, *canaries[client_id].included])
        for client_id, client in data.items()
    }


def to_json(canaries: Mapping[str, ClientCanaries]) -> dict[str, Any]:
    """The canaries and coins of a run as JSON values, see `from_json`."""
    clients = {
        client_id: [
            {"in": coin, "prompt": prompt.tolist(), "answer": answer.tolist()}
            for record, coin in zip(own.records, own.coins, strict=True)
            for prompt, answer in [_parts(record)]
        ]
        for client_id, own in canaries.items()
    }
    return {"clients": clients}


def from_json(value: Any, where: str) -> dict[str, ClientCanaries]:
    """The canaries of a run as `to_json` gives them.

    Args:
        value: a JSON value.
        where: it is from, for messages.

    Raises:
        InputError: if it is something else.
    """
    clients = value.get("clients") if isinstance(value, dict) else None
    ok = isinstance(clients, dict) and all(
        isinstance(some, list) and all(_is_canary(canary) for canary in some) for some in clients.values()
    )
    if not ok or clients is None:
        raise InputError(f"{where}: expected canaries, as fit writes them, got something else; restore the file")
    return {
        client_id: ClientCanaries(
            tuple(_example(torch.tensor(c["prompt"]), torch.tensor(c["answer"])) for c in some),
            tuple(c["in"] for c in some),
        )
        for client_id, some in clients.items()
    }


def _is_canary(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("in"), bool)
        and all(
            isinstance(value.get(part), list)
            and value[part]
            and all(type(token) is int and 0 <= token < 2**31 for token in value[part])
            for part in ("prompt", "answer")
        )
    )


def _prompts(client: ClientData, count: int, room: int, seed: int) -> list[torch.Tensor]:
    """Prompts of a client's training records, drawn without replacement as long as there are some left."""
    generator = random.Random(derive_seed(seed, "canary_prompts", client.client_id))
    order: list[int] = []
    while len(order) < count:
        order += generator.sample(range(len(client.train)), len(client.train))
    prompts = []
    for index in order[:count]:
        example = client.train[index]
        first = int(example.supervised.nonzero()[0])
        prompts.append(example.ids[:first][-room:].clone())
    return prompts


def _new_tokens(client: ClientData, count: int, vocabulary: Collection[int], seed: int) -> list[torch.Tensor]:
    used = {int(i) for split in (client.train, client.eval, client.selection) for e in split for i in e.ids.tolist()}
    unused = sorted(set(vocabulary) - used)
    if len(unused) < count:
        raise InputError(
            f"audit.canaries: {client.client_id}: expected at most {len(unused)} with audit.kind: new_tokens, one for "
            f"each token that none of its records has, got {count}; give fewer, or audit.kind: generated"
        )
    generator = random.Random(derive_seed(seed, "canary_tokens", client.client_id))
    return [torch.tensor([token]) for token in generator.sample(unused, count)]


def _example(prompt: torch.Tensor, answer: torch.Tensor) -> Example:
    return Example(torch.cat([prompt, answer]).long(), torch.arange(len(prompt) + len(answer)) >= len(prompt))


def _parts(record: Example) -> tuple[torch.Tensor, torch.Tensor]:
    first = int(record.supervised.nonzero()[0])
    return record.ids[:first], record.ids[first:]
