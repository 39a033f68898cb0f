"""Any adapters on any departments: what each says of every held-out record, and what that amounts to.

Teacher-forced figures (loss, perplexity, token accuracy) are over tokens, generated ones (exact match, ROUGE-L) over
records; their intervals come from drawing the records anew. The client mean gives every client the same weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torchmetrics.functional.text import rouge_score

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.evaluation.bootstrap import ratio
from fl_lightning.modeling.generation.generate import generate, split
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState
from fl_lightning.storage.files import read_json
from fl_lightning.training.local_clients import LocalClients

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Adapter:
    """An adapter to be judged.

    Attributes:
        state: its tensors, of any rank.
        gain: its scale lora_alpha / r over that of the model it is put on.
    """

    state: LoraState
    gain: float = 1.0


def read_adapter(folder: Path, initial: LoraState, scaling: float) -> Adapter:
    """An adapter in PEFT's format, of any rank and scale.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        initial: a fresh adapter of the model.
        scaling: the model's own lora_alpha / r.

    Raises:
        InputError: if there is none, or it does not fit the model.
    """
    state = read_lora_adapter(folder, initial, any_rank=True)
    path = folder / "adapter_config.json"
    config = read_json(path)
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        root = bool(config.get("use_rslora", False))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no r and lora_alpha, wanted PEFT's config of a LoRA adapter") from error
    own = {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name}
    if own != {rank} or not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"{path}: r {rank} and lora_alpha {alpha} do not fit the tensors, which have rank {max(own)}")
    return Adapter(state, alpha / (math.sqrt(rank) if root else rank) / scaling)


@dataclass(frozen=True)
class Answers:
    """What an adapter says of a department's records, record by record; all arrays have shape (n,).

    Attributes:
        clients: whose record it is.
        loss: summed over the record's targets, in nats.
        tokens: targets.
        correct: targets that were the most likely token.
        exact: 1 where the generated answer is the record's, but for white space; None where nothing was generated.
        rouge: ROUGE-L F-measure of the generated answer (Lin 2004).
    """

    clients: list[str]
    loss: Array
    tokens: Array
    correct: Array
    exact: Array | None = None
    rouge: Array | None = None


class Judge:
    """Puts adapters on one base model and looks at their answers.

    Args:
        clients: the data and the model; nothing is trained.
        tokenizer: of the model.
        max_new_tokens: of a generated answer; 0 generates none.
        records: at most so many records of a client are looked at; None for all.
    """

    def __init__(
        self, clients: LocalClients, tokenizer: Any, *, max_new_tokens: int = 0, records: int | None = None
    ) -> None:
        self._clients, self._tokenizer = clients, tokenizer
        self._max_new_tokens, self._records = max_new_tokens, records

    def answers(self, adapter: Adapter, clients: Sequence[ClientData]) -> Answers:
        """The adapter on the held-out records of a department's clients."""
        pairs = [(c.client, example) for c in clients for example in list(c.eval)[: self._records]]
        examples = [example for _, example in pairs]
        sums = self._clients.evaluate_records(adapter.state, examples, adapter.gain)
        exact = rouge = None
        if self._max_new_tokens:
            exact, rouge = self._generated(adapter, examples)
        return Answers([client for client, _ in pairs], sums[:, 0], sums[:, 2], sums[:, 1], exact, rouge)

    def _generated(self, adapter: Adapter, examples: Sequence[Example]) -> tuple[Array, Array]:
        parts = [split(example) for example in examples]
        end = self._tokenizer.eos_token_id
        with self._clients.wearing(adapter.state, adapter.gain) as model:
            given = generate(model, [prompt for prompt, _ in parts], max_new_tokens=self._max_new_tokens, end=end)
        exact, rouge = np.zeros((2, len(examples)))
        for i, (ids, (_, wanted)) in enumerate(zip(given, parts, strict=True)):
            said, right = (" ".join(self._tokenizer.decode(t, skip_special_tokens=True).split()) for t in (ids, wanted))
            exact[i] = said == right
            rouge[i] = float(rouge_score(said, right, rouge_keys="rougeL")["rougeL_fmeasure"])
        return exact, rouge


def amounts_to(answers: Answers, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """The figures of one adapter on one department.

    Args:
        answers: record by record.
        seed: of the resampling.
        resamples: for the intervals; 0 gives none.

    Returns:
        ``loss``, ``perplexity``, ``token_accuracy`` and, where there are generated answers, ``exact_match`` and
        ``rouge_l``, each {"mean", "low", "high"}; ``client_mean`` with the unweighted mean over clients of each;
        ``num_records``, ``num_tokens``.
    """
    ones = np.ones_like(answers.loss)
    sums = {"loss": (answers.loss, answers.tokens), "token_accuracy": (answers.correct, answers.tokens)}
    for name, each in (("exact_match", answers.exact), ("rouge_l", answers.rouge)):
        if each is not None:
            sums[name] = (each, ones)
    found: dict[str, Any] = {name: ratio(*pair, seed=seed, resamples=resamples) for name, pair in sums.items()}
    found["perplexity"] = {bound: math.exp(min(value, 700.0)) for bound, value in found["loss"].items()}
    names = sorted(set(answers.clients))
    own = np.array([[client == name for client in answers.clients] for name in names])
    found["client_mean"] = {
        name: float(np.mean([top[mask].sum() / below[mask].sum() for mask in own]))
        for name, (top, below) in sums.items()
    }
    return {**found, "num_records": len(answers.loss), "num_tokens": int(answers.tokens.sum())}


def judge(
    jury: Judge,
    adapters: Mapping[str, Adapter],
    data: Mapping[str, ClientData],
    *,
    pairs: Sequence[tuple[str, str]],
    seed: int,
    resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """{adapter: {department: figures}} for the pairs of both that are wanted."""
    departments: dict[str, list[ClientData]] = {}
    for client in data.values():
        departments.setdefault(client.department, []).append(client)
    found: dict[str, dict[str, Any]] = {}
    for name, department in pairs:
        log.info("%s on %s", name, department)
        own = derive_seed(seed, "bootstrap", department)  # the same draws for every adapter: intervals are comparable
        answers = jury.answers(adapters[name], departments[department])
        found.setdefault(name, {})[department] = amounts_to(answers, seed=own, resamples=resamples)
    return found
