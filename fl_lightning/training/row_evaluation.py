"""Loss and accuracy of adapters on held-out records, many records and adapters in one packed row."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.data.packing import pack
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.protocol import Metrics
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.modeling.row_layout import check_examples
from fl_lightning.module import LoraClientModule

log = logging.getLogger(__name__)

EVAL_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens per row of an evaluation, which keeps nothing for a backward pass."""

EVAL_ADAPTERS = 16
"""Adapters that are loaded together for an evaluation; one row may hold records of several of them."""


class RowEvaluation:
    """Evaluates adapters on records, or lends the model with an adapter on it.

    Args:
        module: around the PEFT model.
        forward: `module` as Fabric set it up; takes a packed row and returns `ClientSums`.
        cohort: of the module's model.
        device: of the model.
    """

    def __init__(self, module: LoraClientModule, forward: Any, cohort: LoraCohort, device: torch.device) -> None:
        self._module, self._forward, self._cohort, self._device = module, forward, cohort, device
        self._row_tokens = EVAL_TOKENS.get(device.type, EVAL_TOKENS["cpu"])

    @torch.no_grad()
    def evaluate(
        self, states: Sequence[Mapping[str, torch.Tensor]], record_sets: Sequence[Sequence[Example]]
    ) -> list[Metrics]:
        """Metrics of adapter k on ``record_sets[k]``, in eval mode.

        Args:
            states: K adapters of any rank.
            record_sets: K sets of records.
        """
        sums: list[torch.Tensor] = []
        targets = [0] * len(record_sets)
        self._module.eval()
        self._cohort.load(states, self._device)
        with self._cohort.attached():
            for examples in batch_rows(record_sets, self._row_tokens):
                for row in self._module.parts(pack(examples)):
                    self._cohort.set_segments(row.client_tokens, lengths=row.lengths)
                    result = self._forward(row.to(self._device))
                    sums.append(torch.stack([result.loss, result.correct]))
                    targets = [total + new for total, new in zip(targets, row.client_targets, strict=True)]
        # One copy for all rows: each waits for a GPU. Sums over rows are in fp64.
        loss, correct = torch.stack(sums).cpu().double().sum(0) if sums else torch.zeros(2, len(record_sets))
        return [Metrics(float(loss[k]), float(correct[k]), targets[k], len(r)) for k, r in enumerate(record_sets)]

    @torch.no_grad()
    def target_losses(
        self, states: Sequence[Mapping[str, torch.Tensor]], examples: Sequence[Example]
    ) -> list[npt.NDArray[np.float64]]:
        """The loss of every target token under several adapters, which share the rows.

        Args:
            states: K adapters of any rank.
            examples: n records.

        Returns:
            For each record the losses of its T targets in nats, shape (T, K).
        """
        if not examples:
            return []
        columns: list[list[torch.Tensor]] = [[] for _ in states]
        self._module.eval()
        self._cohort.load(states, self._device)
        with self._cohort.attached():
            for row_examples in batch_rows([examples] * len(states), self._row_tokens):
                for row in self._module.parts(pack(row_examples)):
                    self._cohort.set_segments(row.client_tokens, lengths=row.lengths)
                    # Each target counts as a separate client, so the sums of the clients are the targets' losses.
                    targets = len(row.targets)
                    single = replace(row, owners=torch.arange(targets), client_targets=(1,) * targets)
                    losses = self._forward(single.to(self._device)).loss.double().cpu()
                    for column, part in zip(columns, torch.split(losses, list(row.client_targets)), strict=True):
                        column.append(part)
        losses_by_length = torch.stack([torch.cat(column) for column in columns], dim=1)
        by_length = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # as in `batch_rows`
        counts = [int(examples[i].supervised.sum()) for i in by_length]
        records = dict(zip(by_length, torch.split(losses_by_length, counts), strict=True))
        return [records[i].numpy() for i in range(len(examples))]

    @torch.no_grad()
    def evaluate_records(
        self, state: Mapping[str, torch.Tensor], examples: Sequence[Example], relative_scaling: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Evaluate one adapter on each record separately.

        Args:
            state: an adapter of any rank.
            examples: n records.
            relative_scaling: the adapter's lora_alpha / r divided by the model's.

        Returns:
            For each record the summed loss in nats, the number of correct targets and the number of targets,
            shape (n, 3).
        """
        parts: list[tuple[list[int], torch.Tensor]] = []
        self._module.eval()
        self._cohort.load([state], self._device, relative_scalings=[relative_scaling])
        by_length = sorted(range(len(examples)), key=lambda i: len(examples[i]))
        start = 0
        with self._cohort.attached():
            while start < len(by_length):
                stop, tokens = start + 1, len(examples[by_length[start]])
                while stop < len(by_length) and tokens + len(examples[by_length[stop]]) <= self._row_tokens:
                    tokens += len(examples[by_length[stop]])
                    stop += 1
                indices, start = by_length[start:stop], stop
                for row in self._module.parts(pack([[examples[i]] for i in indices])):
                    self._cohort.set_segments((row.num_tokens,), lengths=row.lengths)
                    result = self._forward(row.to(self._device))
                    parts.append((indices, torch.stack([column.float() for column in result], dim=1)))
        sums = np.zeros((len(examples), 3))
        values = torch.cat([part for _, part in parts]).cpu().double().numpy() if parts else sums
        np.add.at(sums, [i for indices, _ in parts for i in indices], values)
        return sums

    def check(self) -> None:
        """Check that every layer with an adapter sees all tokens of a batch; layers that see none are logged.

        Raises:
            InputError: if one sees a part of them only.
        """
        state = collect_lora_state(self._module.model)
        embeddings = self._module.model.get_input_embeddings()
        examples = check_examples(self._module.model.config, embeddings.num_embeddings)
        self.evaluate([state, state], [examples[:1], examples[1:]])
        if unused := self._cohort.unused_layers():
            message = "lora.target_modules: text does not pass %d layers such as %s; they stay as they are"
            log.warning(message, len(unused), unused[0])

    @contextlib.contextmanager
    def with_adapter(self, state: Mapping[str, torch.Tensor], relative_scaling: float = 1.0) -> Iterator[Any]:
        """The model with an adapter of any rank on it while this block runs, for generation in batches of any size."""
        self._cohort.load([state], self._device, relative_scalings=[relative_scaling])
        self._cohort.set_single_client()
        with self._cohort.attached():
            yield self._module.model


def batch_rows(record_sets: Sequence[Sequence[Example]], budget: int) -> Iterator[list[list[Example]]]:
    """Distribute the records of K sets over rows of at most `budget` tokens; a longer record gets a row to itself.

    Yields:
        For each row K lists. Sets follow one another, and a set's records are sorted by length, so that records of
        similar length share a row.
    """
    row: list[list[Example]] = [[] for _ in record_sets]
    filled = 0
    for k, examples in enumerate(record_sets):
        for example in sorted(examples, key=len):
            if filled and filled + len(example) > budget:
                yield row
                row, filled = [[] for _ in record_sets], 0
            row[k].append(example)
            filled += len(example)
    if filled:
        yield row
