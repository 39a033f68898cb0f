from __future__ import annotations

import numpy as np
import pytest
import torch
from client_fits import assert_states_equal, tasks_for
from torch.nn.functional import cross_entropy

from fl_lightning.data.client_data import ClientData
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.training.row_evaluation import EVAL_ADAPTERS, EVAL_TOKENS, batch_rows


def test_evaluation_equals_a_plain_loop(local_clients, federation, random_state, micro_model):
    clients, model = local_clients(dropout=0.5)
    jobs = [(random_state(model, k), f"hr/client_{k}") for k in range(3)]
    plain = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8).eval()
    for (state, client_id), got in zip(jobs, clients.evaluate(jobs), strict=True):
        load_lora_state(plain, state)
        loss, hits, count = 0.0, 0, 0
        for example in federation[client_id].eval:
            places = example.supervised.nonzero().squeeze(1)
            with torch.no_grad():
                logits = plain(input_ids=example.ids[None]).logits[0, places - 1]
            loss += cross_entropy(logits, example.ids[places], reduction="sum").item()
            hits += int((logits.argmax(-1) == example.ids[places]).sum())
            count += len(places)
        assert got.loss_sum == pytest.approx(loss, abs=1e-3)
        assert (got.correct, got.num_tokens, got.num_examples) == (hits, count, 3)


def test_evaluation_does_not_depend_on_the_distribution_over_rows(local_clients, random_state, make_examples):
    clients, model = local_clients()
    examples = make_examples(12, seed=4, low=300, high=450)
    assert sum(map(len, examples)) > EVAL_TOKENS["cpu"]
    parts = {f"hr/part_{i}": ClientData("hr", f"part_{i}", [], [e]) for i, e in enumerate(examples)}
    clients.data = {"hr/whole": ClientData("hr", "whole", [], examples), **parts}
    state = random_state(model)
    whole = clients.evaluate([(state, "hr/whole")])[0]
    apart = clients.evaluate((state, client_id) for client_id in parts)
    total = sum(apart[1:], apart[0])
    assert whole.loss_sum == pytest.approx(total.loss_sum, rel=1e-5)
    assert (whole.num_tokens, whole.num_examples) == (total.num_tokens, 12)


def test_many_adapters_are_evaluated_as_each_one_alone(local_clients, random_state):
    clients, model = local_clients()
    jobs = [(random_state(model, k), f"hr/client_{k % 3}") for k in range(EVAL_ADAPTERS + 3)]
    for job, got in zip(jobs, clients.evaluate(jobs), strict=True):
        alone = clients.evaluate([job])[0]
        assert got.loss_sum == pytest.approx(alone.loss_sum, rel=1e-5)
        assert (got.correct, got.num_tokens) == (alone.correct, alone.num_tokens)


def test_rows_hold_every_example_once_within_the_budget(make_examples):
    sets = [make_examples(7, seed=1), [], make_examples(3, seed=2, low=30, high=40)]
    found = list(batch_rows(sets, 32))
    for k, examples in enumerate(sets):
        assert sorted(id(e) for row in found for e in row[k]) == sorted(map(id, examples))
    tokens = [[len(e) for examples in row for e in examples] for row in found]
    assert all(sum(row) <= 32 or len(row) == 1 for row in tokens)
    assert any(len(row[0]) > 0 and len(row[2]) == 0 for row in found)


def test_evaluation_in_between_does_not_change_a_fit(local_clients, federation, random_state):
    clients, model = local_clients(dropout=0.1)
    tasks = tasks_for(model, random_state, ids=[0])
    first = clients.fit_cohort(tasks)[0]
    clients.evaluate([(tasks[0].start, "hr/client_1")])
    assert_states_equal(first.state, clients.fit_cohort(tasks)[0].state)


def test_sums_of_records_add_up_to_those_of_the_set(local_clients, federation, random_state):
    clients, model = local_clients()
    client_id, data = next(iter(federation.items()))
    state = random_state(model)
    sums = clients.evaluate_records(state, data.eval)
    (together,) = clients.evaluate([(state, client_id)])
    assert sums.shape == (len(data.eval), 3)
    np.testing.assert_allclose(sums.sum(0), [together.loss_sum, together.correct, together.num_tokens], rtol=1e-5)
    alone = [clients.evaluate_records(state, [example])[0] for example in data.eval]
    np.testing.assert_allclose(sums, alone, rtol=1e-5)


def test_relative_scaling_scales_the_adapter(local_clients, federation, random_state):
    clients, model = local_clients()
    data = next(iter(federation.values()))
    state = random_state(model)
    doubled = {name: tensor * (2 if "lora_B" in name else 1) for name, tensor in state.items()}
    np.testing.assert_allclose(
        clients.evaluate_records(state, data.eval, 2.0), clients.evaluate_records(doubled, data.eval), rtol=1e-5
    )


def test_with_adapter_gives_the_logits_of_peft_and_removes_the_adapter(local_clients, random_state):
    from fl_lightning.modeling.lora import load_lora_state

    clients, model = local_clients()
    model.eval()
    state, ids = random_state(model), torch.tensor([[3, 5, 7], [4, 6, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with clients.with_adapter(state, 1.0) as worn:
            got = worn(input_ids=ids).logits
        after = model(input_ids=ids).logits
        load_lora_state(model, state)
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, before, atol=1e-3)
    assert torch.equal(before, after)


def test_sums_of_all_rows_are_copied_once(local_clients, federation, random_state, monkeypatch):
    clients, model = local_clients()
    evaluation = clients._evaluation
    evaluation._row_tokens = 1  # a row for each record
    records, state = federation["hr/client_0"].eval, random_state(model)
    copies, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or original(self))
    evaluation.evaluate([state], [records])
    assert copies == [1]
    evaluation.evaluate_records(state, records)
    assert copies == [1, 1]


@pytest.mark.parametrize("kind", ["qwen", "mamba"])  # packed rows; one record at a time
def test_losses_of_targets_are_those_of_a_plain_model_in_the_order_of_the_records(
    local_clients, random_state, micro_model, make_examples, kind
):
    names = {"qwen": ["q_proj", "v_proj"], "mamba": ["in_proj"]}[kind]
    clients, model = local_clients(kind)
    states, examples = [random_state(model, k) for k in range(3)], make_examples(5, seed=9)
    plain = create_lora_model(micro_model(kind), r=4, lora_alpha=8, target_modules=names).eval()
    losses = clients.target_losses(states, examples)
    assert [record.shape for record in losses] == [(int(e.supervised.sum()), 3) for e in examples]
    for k, state in enumerate(states):
        load_lora_state(plain, state)
        for record, example in zip(losses, examples, strict=True):
            places = example.supervised.nonzero().squeeze(1)
            with torch.no_grad():
                logits = plain(input_ids=example.ids[None]).logits[0, places - 1]
            expected = cross_entropy(logits, example.ids[places], reduction="none").numpy()
            np.testing.assert_allclose(record[:, k], expected, rtol=1e-4, atol=1e-5)
