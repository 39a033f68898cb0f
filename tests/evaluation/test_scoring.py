"""Figures of adapters on departments, worked out by hand from record-wise answers."""

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.evaluation.scoring import (
    AdapterScorer,
    RecordScores,
    score_all,
    summarize,
)
from fl_lightning.modeling.scaled_adapter import ScaledAdapter

A = "w.lora_A.weight"


def test_figures_are_over_tokens_and_over_clients():
    scores = RecordScores(
        ["c0", "c0", "c1"],
        loss=np.array([4.0, 2.0, 6.0]),
        tokens=np.array([2.0, 1.0, 1.0]),
        correct=np.array([1.0, 1.0, 0.0]),
        exact=np.array([1.0, 0.0, 0.0]),
        rouge=np.array([1.0, 0.5, 0.0]),
    )
    got = summarize(scores, seed=0, resamples=50)
    assert got["loss"]["mean"] == 3.0  # 12 nats, 4 tokens
    assert got["perplexity"] == {bound: math.exp(value) for bound, value in got["loss"].items()}
    assert got["token_accuracy"]["mean"] == 0.5
    assert (got["exact_match"]["mean"], got["rouge_l"]["mean"]) == (pytest.approx(1 / 3), 0.5)
    assert got["client_mean"] == {
        "loss": 4.0,
        "token_accuracy": pytest.approx(1 / 3),
        "exact_match": 0.25,
        "rouge_l": 0.375,
    }
    assert (got["num_records"], got["num_tokens"]) == (3, 4)
    assert got["loss"]["low"] <= 3.0 <= got["loss"]["high"]


def test_without_answers_there_are_no_figures_of_answers():
    ones = np.ones(2)
    got = summarize(RecordScores(["c0", "c0"], ones, ones, ones), seed=0, resamples=0)
    assert "exact_match" not in got
    assert got["loss"] == {"mean": 1.0}


class Words:
    """A tokenizer of numbers: token 7 is the word "w7"."""

    eos_token_id = 0

    def decode(self, ids, skip_special_tokens=True):
        return "  ".join(f"w{i}" for i in ids.tolist() if i)


class Fake:
    """Clients whose adapter says what its A holds, whatever it is asked."""

    def evaluate_records(self, state, examples, gain=1.0):
        return np.array([[gain * float(state[A].sum()), 1.0, float(e.supervised.sum())] for e in examples])

    def with_adapter(self, state, gain=1.0):
        import contextlib

        said = state[A].flatten().long()

        class Model(torch.nn.Module):
            config = PreTrainedConfig()  # with no number of positions

            def __init__(self):
                super().__init__()
                self.p = torch.nn.Parameter(torch.zeros(1))

            def generate(self, input_ids, **_):
                return torch.cat([input_ids, said.expand(len(input_ids), -1)], dim=1)

        return contextlib.nullcontext(Model())


def record(prompt, answer):
    marks = [False] * len(prompt) + [True] * len(answer)
    return Example(torch.tensor([*prompt, *answer]), torch.tensor(marks))


@pytest.fixture
def data():
    clients = [
        ClientData("hr", "c0", [], [record([9], [3, 4, 0]), record([9, 9], [3, 5, 0])]),
        ClientData("hr", "c1", [], [record([8], [6, 7, 0])]),
        ClientData("it", "c0", [], [record([8], [4, 0])]),
    ]
    return {client.client_id: client for client in clients}


def test_generated_answers_are_compared_word_by_word(data):
    scorer = AdapterScorer(Fake(), Words(), max_new_tokens=4)
    adapter = ScaledAdapter({A: torch.tensor([[3.0, 4.0, 0.0, 5.0]])})  # says w3 w4, and nothing after the end token
    got = scorer.score(adapter, [data["hr/c0"], data["hr/c1"]])
    assert got.clients == ["c0", "c0", "c1"]
    assert got.exact.tolist() == [1.0, 0.0, 0.0]
    assert got.rouge.tolist() == [1.0, 0.5, 0.0]  # two words, one in common: precision and recall one half
    assert got.tokens.tolist() == [3.0, 3.0, 3.0]


def test_each_pair_is_scored_and_records_are_limited(data):
    adapters = {
        "base": ScaledAdapter({A: torch.zeros(1, 1)}),
        "x": ScaledAdapter({A: torch.ones(1, 1)}, relative_scaling=2.0),
    }
    pairs = [("base", "hr"), ("x", "hr"), ("x", "it")]
    got = score_all(AdapterScorer(Fake(), Words(), max_records=1), adapters, data, pairs=pairs, seed=1, resamples=10)
    assert {name: sorted(own) for name, own in got.items()} == {"base": ["hr"], "x": ["hr", "it"]}
    assert got["x"]["hr"]["num_records"] == 2
    assert got["x"]["hr"]["loss"]["mean"] == pytest.approx(2 * 2 / 6)
