"""Distillation against a plain loop: PEFT's model with one adapter after another, torch's KL divergence, one AdamW."""

from __future__ import annotations

import pytest
import torch
from client_fits import EPS, RATE, assert_states_close, assert_states_equal

from fl_lightning.data.packing import epoch_order
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, load_lora_state
from fl_lightning.seeding import derive_seed
from fl_lightning.training import distillation
from fl_lightning.training.distillation import SoftTargets, divergence

WEIGHTS = [0.5, 0.3, 0.2]
EPOCHS, SEED = 3, 11


@pytest.fixture
def mixture(random_state, micro_model):
    """Three adapters, the student's start, and a plain PEFT model."""
    model = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8).eval()
    return [random_state(model, seed) for seed in (1, 2, 3)], random_state(model, 4), model


def logits_of(model, example):
    places = example.supervised.nonzero().squeeze(1)
    return model(input_ids=example.ids[None]).logits[0, places - 1]


def teacher(model, states, examples):
    """The mixture's probabilities at the targets of each record, one adapter after another."""
    probs = [0.0] * len(examples)
    for state, weight in zip(states, WEIGHTS, strict=True):
        load_lora_state(model, state)
        for i, example in enumerate(examples):
            with torch.no_grad():
                probs[i] = probs[i] + weight * logits_of(model, example).softmax(-1)
    return probs


def mean_divergence(model, probs, examples):
    sums = [
        torch.nn.functional.kl_div(logits_of(model, e).log_softmax(-1), p, reduction="sum")
        for e, p in zip(examples, probs, strict=True)
    ]
    return torch.stack(sums).sum() / sum(map(len, probs))


def test_student_is_that_of_a_plain_loop_and_comes_closer_to_the_mixture(local_clients, federation, mixture):
    states, start, model = mixture
    examples = federation["hr/client_0"].train
    clients, _ = local_clients(batch_size=2, dropout=0.5)
    student = clients.distill(start, states, WEIGHTS, examples, epochs=EPOCHS, seed=SEED)

    probs = teacher(model, states, examples)
    load_lora_state(model, start)
    parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, eps=EPS)
    before = mean_divergence(model, probs, examples).item()
    for epoch in range(EPOCHS):
        for batch in epoch_order(len(examples), 2, derive_seed(SEED, epoch)):
            mean_divergence(model, [probs[i] for i in batch], [examples[i] for i in batch]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert_states_close(student, collect_lora_state(model), atol=2e-5)
    assert mean_divergence(model, probs, examples).item() < 0.95 * before


def test_the_same_bytes_come_out_again_and_padded_models_are_distilled_too(local_clients, federation, random_state):
    for kind in ("qwen", "bloom"):
        clients, model = local_clients(kind, batch_size=2)
        states = [random_state(model, seed) for seed in (1, 2)]
        first, second = (
            clients.distill(states[0], states, [0.2, 0.8], federation["hr/client_0"].train[:2], epochs=2, seed=SEED)
            for _ in range(2)
        )
        assert_states_equal(first, second)
        assert not torch.equal(first[next(iter(first))], states[0][next(iter(first))])


def test_few_tokens_are_the_divergence_of_these_and_one_outcome_for_all_others():
    generator = torch.Generator().manual_seed(0)
    teacher_logits, logits = (torch.randn(5, 9, generator=generator) for _ in range(2))
    logits.requires_grad_(True)
    values, tokens = teacher_logits.log_softmax(-1).topk(3)
    got = divergence(SoftTargets(tokens.int(), values), logits)

    def merged(probs):
        return torch.cat([probs.gather(1, tokens), (probs.sum(1) - probs.gather(1, tokens).sum(1))[:, None]], 1)

    expected = torch.nn.functional.kl_div(
        merged(logits.softmax(-1)).log(), merged(teacher_logits.softmax(-1)), reduction="none"
    ).sum(1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), logits, retain_graph=True), torch.autograd.grad(expected.sum(), logits)
    )


def test_large_vocabularies_keep_the_likeliest_tokens(local_clients, federation, mixture, monkeypatch):
    states, start, model = mixture
    examples = federation["hr/client_0"].train
    probs = teacher(model, states, examples)
    monkeypatch.setattr(distillation, "SOFT_VALUES", 20 * sum(map(len, probs)))
    clients, _ = local_clients(batch_size=2)
    targets = clients._distillation.soft_targets(states, WEIGHTS, examples)
    for target, whole in zip(targets, probs, strict=True):
        values, tokens = whole.topk(20)
        torch.testing.assert_close(target.log_probs.exp(), values)
        assert (target.tokens == tokens).float().mean() > 0.95
    student = clients.distill(start, states, WEIGHTS, examples, epochs=EPOCHS, seed=SEED)
    closer = []
    for state in (start, student):
        load_lora_state(model, state)
        with torch.no_grad():
            closer.append(mean_divergence(model, probs, examples).item())
    assert closer[1] < closer[0]
