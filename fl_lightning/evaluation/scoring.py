"""Any adapters on any departments: scores of every held-out record, and the metrics that summarize them.

Teacher-forced metrics (loss, perplexity, token accuracy) are over tokens, those of generated answers (exact match,
ROUGE-L) over records; confidence intervals come from resampling the records. The client mean gives every client the
same weight.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torchmetrics.functional.text import rouge_score

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.tokenization import Example
from fl_lightning.evaluation.bootstrap import ratio_interval
from fl_lightning.evaluation.metrics import perplexity
from fl_lightning.modeling.generation.generate import generate, split
from fl_lightning.modeling.scaled_adapter import ScaledAdapter
from fl_lightning.seeding import derive_seed
from fl_lightning.training.local_clients import LocalClients

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecordScores:
    """Scores of one adapter on a department's records; all arrays have shape (n,).

    Attributes:
        clients: whose record it is.
        loss: summed over the record's target tokens, in nats.
        tokens: number of target tokens.
        correct: number of target tokens that were the most likely token.
        exact: 1 if the generated answer equals the record's, ignoring white space; None without generated answers.
        rouge: ROUGE-L F-measure of the generated answer (Lin 2004).
    """

    clients: list[str]
    loss: Array
    tokens: Array
    correct: Array
    exact: Array | None = None
    rouge: Array | None = None


class AdapterScorer:
    """Scores adapters on one base model.

    Args:
        clients: the data and the model; nothing is trained.
        tokenizer: of the model.
        max_new_tokens: of a generated answer; 0 generates none.
        max_records: held-out records of each client that are scored; None scores all.
    """

    def __init__(
        self, clients: LocalClients, tokenizer: Any, *, max_new_tokens: int = 0, max_records: int | None = None
    ) -> None:
        self._clients, self._tokenizer = clients, tokenizer
        self._max_new_tokens, self._max_records = max_new_tokens, max_records

    def score(self, adapter: ScaledAdapter, clients: Sequence[ClientData]) -> RecordScores:
        """Scores of the adapter on the held-out records of a department's clients."""
        records = [(c.client, example) for c in clients for example in list(c.eval)[: self._max_records]]
        examples = [example for _, example in records]
        sums = self._clients.evaluate_records(adapter.state, examples, adapter.relative_scaling)
        exact = rouge = None
        if self._max_new_tokens:
            exact, rouge = self._score_answers(adapter, examples)
        return RecordScores([client for client, _ in records], sums[:, 0], sums[:, 2], sums[:, 1], exact, rouge)

    def _score_answers(self, adapter: ScaledAdapter, examples: Sequence[Example]) -> tuple[Array, Array]:
        """(exact match, ROUGE-L) of generated answers, each of shape (n,)."""
        parts = [split(example) for example in examples]
        prompts = [prompt for prompt, _ in parts]
        with self._clients.with_adapter(adapter.state, adapter.relative_scaling) as model:
            ends = find_end_tokens(self._tokenizer, getattr(model, "generation_config", None))
            answers = generate(model, prompts, max_new_tokens=self._max_new_tokens, ends=ends)
        exact, rouge = np.zeros((2, len(examples)))
        for i, (answer, (_, reference)) in enumerate(zip(answers, parts, strict=True)):
            answer_text, reference_text = self._decode(answer), self._decode(reference)
            exact[i] = answer_text == reference_text
            rouge[i] = float(rouge_score(answer_text, reference_text, rouge_keys="rougeL")["rougeL_fmeasure"])
        return exact, rouge

    def _decode(self, ids: Any) -> str:
        return " ".join(self._tokenizer.decode(ids, skip_special_tokens=True).split())


def summarize(scores: RecordScores, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """The metrics of one adapter on one department.

    Args:
        scores: record by record.
        seed: of the resampling.
        resamples: for the confidence intervals; 0 gives none.

    Returns:
        ``loss``, ``perplexity``, ``token_accuracy`` and, with generated answers, ``exact_match`` and ``rouge_l``, each
        {"mean", "low", "high"}; ``client_mean`` with the unweighted mean over clients of each; ``num_records`` and
        ``num_tokens``.
    """
    ones = np.ones_like(scores.loss)
    ratios = {"loss": (scores.loss, scores.tokens), "token_accuracy": (scores.correct, scores.tokens)}
    for name, values in (("exact_match", scores.exact), ("rouge_l", scores.rouge)):
        if values is not None:
            ratios[name] = (values, ones)
    metrics: dict[str, Any] = {
        name: ratio_interval(numerator, denominator, seed=seed, resamples=resamples)
        for name, (numerator, denominator) in ratios.items()
    }
    metrics["perplexity"] = {bound: perplexity(loss) for bound, loss in metrics["loss"].items()}
    names = sorted(set(scores.clients))
    masks = np.array([[client == name for client in scores.clients] for name in names])
    metrics["client_mean"] = {
        name: float(np.mean([numerator[mask].sum() / denominator[mask].sum() for mask in masks]))
        for name, (numerator, denominator) in ratios.items()
    }
    return {**metrics, "num_records": len(scores.loss), "num_tokens": int(scores.tokens.sum())}


def score_all(
    scorer: AdapterScorer,
    adapters: Mapping[str, ScaledAdapter],
    data: Mapping[str, ClientData],
    *,
    pairs: Sequence[tuple[str, str]],
    seed: int,
    resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Score several adapters on several departments.

    Args:
        scorer: with the base model.
        adapters: {name: adapter}.
        data: {client_id: records}.
        pairs: (name of the adapter, department) of those to score.
        seed: of the run.
        resamples: see `summarize`.

    Returns:
        {name of the adapter: {department: metrics as `summarize` returns them}}.
    """
    clients: dict[str, list[ClientData]] = {}
    for client in data.values():
        clients.setdefault(client.department, []).append(client)
    metrics: dict[str, dict[str, Any]] = {}
    for name, department in pairs:
        log.info("%s on %s", name, department)
        scores = scorer.score(adapters[name], clients[department])
        # All adapters get the same draws, so that their intervals can be compared.
        draw_seed = derive_seed(seed, "bootstrap", department)
        metrics.setdefault(name, {})[department] = summarize(scores, seed=draw_seed, resamples=resamples)
    return metrics
