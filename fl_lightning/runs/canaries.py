"""A run's canaries: made before the first round, written where only the owner of the run reads them, and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import AuditConfig, RunConfig
from fl_lightning.data.canaries import ClientCanaries, from_json, make_canaries, to_json
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.errors import InputError
from fl_lightning.modeling.generation.sample_answers import sample_answers
from fl_lightning.modeling.limits import limit_length, vocabulary_size
from fl_lightning.storage.files import check_secret, read_json, write_json
from fl_lightning.storage.run_layout import CANARIES


def build_canaries(
    config: RunConfig,
    data: Mapping[str, ClientData],
    model: Any,
    tokenizer: Any,
    device: torch.device,
    run_folder: Path | None = None,
) -> dict[str, ClientCanaries]:
    """{client_id: canaries} of a run: those that its folder has, else new ones, which are always the same.

    Args:
        config: of the run, with ``audit.canaries`` above 0.
        data: {client_id: tokenized records}, without canaries.
        model: the base model, with an adapter that changes nothing.
        tokenizer: of the base model.
        device: on which answers are generated.
        run_folder: of the run; None before it exists.

    Raises:
        InputError: if the federation is too large, or the file in the folder does not fit the config.
    """
    if isinstance(data, LazyClients):
        raise InputError(
            f"audit.canaries: expected 0 with {len(data):,} clients, whose records are read when they are needed, got "
            f"{config.audit.canaries}; use fewer clients (data.clients_per_dept)"
        )
    if run_folder is not None and (run_folder / CANARIES).exists():
        return read_canaries(run_folder, config.audit, data)
    ends, size = find_end_tokens(tokenizer, getattr(model, "generation_config", None)), len(tokenizer)
    special = {*ends, *tokenizer.all_special_ids}
    rows = max(size, vocabulary_size(model.config) or size)
    if config.audit.kind == "generated" and not config.model.load_in_4bit and config.fabric.strategy != "fsdp":
        model.to(device)

    def answer(prompts: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
        return sample_answers(
            model,
            prompts,
            num_tokens=config.audit.answer_tokens,
            temperature=config.audit.temperature,
            seed=seed,
            forbidden={*special, *range(size, rows)},
        )

    return make_canaries(
        data,
        config.audit,
        seed=config.seed,
        max_length=limit_length(config.data.max_length, model),
        answer=answer,
        vocabulary=set(range(size)) - special,
    )


def write_canaries(run_folder: Path, canaries: Mapping[str, ClientCanaries]) -> None:
    """Write canaries and coins (0600), unless there are none or the folder has them."""
    if canaries and not (run_folder / CANARIES).exists():
        write_json(run_folder / CANARIES, to_json(canaries), secret=True)


def read_canaries(run_folder: Path, config: AuditConfig, client_ids: Mapping[str, object]) -> dict[str, ClientCanaries]:
    """The canaries and coins that `write_canaries` has written.

    Args:
        run_folder: of the run.
        config: the ``audit`` block.
        client_ids: of the run's clients, in order.

    Raises:
        InputError: if the file is missing, others may read it, or it is of other clients or another number.
    """
    path = run_folder / CANARIES
    check_secret(path)
    canaries = from_json(read_json(path), str(path))
    counts = {len(own.coins) for own in canaries.values()}
    if counts != {config.canaries}:
        raise InputError(
            f"audit.canaries: expected {', '.join(map(str, sorted(counts)))}, with which the run started, got "
            f"{config.canaries}; start a new run"
        )
    if canaries.keys() != client_ids.keys():
        other = sorted(canaries.keys() ^ client_ids.keys())[0]
        raise InputError(
            f"{path}: expected canaries of the clients in data.root, got a difference in {other}; restore the data, or "
            "start a new run"
        )
    return {client_id: canaries[client_id] for client_id in client_ids}


def without_canaries(config: RunConfig) -> RunConfig:
    """The config of a run for what does not look at training records, so that no canaries are made."""
    return replace(config, audit=AuditConfig())
