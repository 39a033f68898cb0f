from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch.nn.functional import cross_entropy

import fl_lightning.training.local_clients as fit_module
from fl_lightning.config import ModelConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.packing import epoch_order
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import RunError
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask, Metrics
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, load_lora_state
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.row_evaluation import EVAL_ADAPTERS, EVAL_TOKENS, batch_rows

RATE = 1e-3
EPS = 1e-5  # AdamW's own 1e-8 turns rounding of the last bit in a vanishing gradient into whole steps
COUNTS = (5, 8, 11)
TARGETS = {"gpt2": ["c_attn"]}


class SteadyModule(LoraClientModule):
    """Takes AdamW steps that rounding cannot flip."""

    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, eps=EPS)


@pytest.fixture
def federation(make_examples):
    """Three clients with ragged record counts."""
    return {
        f"hr/client_{k}": ClientData("hr", f"client_{k}", make_examples(n, seed=n), make_examples(3, seed=n + 50))
        for k, n in enumerate(COUNTS)
    }


@pytest.fixture
def local_clients(micro_model, federation):
    """Factory of LocalClients on a micro model: a fresh model at every call, with the same weights."""

    def make(kind="qwen", at_once=1, dropout=0.0, precision="32-true", base_dropout=False, **training):
        base = micro_model(kind, dropout=base_dropout)
        names = TARGETS.get(kind, ["q_proj", "v_proj"])
        model = create_lora_model(base, r=4, lora_alpha=8, lora_dropout=dropout, target_modules=names)
        module = SteadyModule(model, learning_rate=RATE)
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        return LocalClients(fabric, module, federation, TrainingConfig(**training), at_once), model

    return make


def tasks_for(model, random_state, ids=(0, 1, 2), round_num=1, run_seed=7):
    return [ClientTask(f"hr/client_{k}", round_num, random_state(model, seed=k), run_seed) for k in ids]


def assert_states_close(first, second, atol):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=0)


def assert_states_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("kind", ["qwen", "llama", "gpt2"])
def test_clients_trained_together_equal_each_one_trained_alone(local_clients, random_state, kind, window):
    settings = {"dropout": 0.1, "batch_size": 4, "accumulate_grad_batches": window, "local_epochs": 2}
    clients, model = local_clients(kind, at_once=3, **settings)
    tasks = tasks_for(model, random_state)
    together = list(clients.fit(tasks))
    for k, task in enumerate(tasks):
        alone = list(local_clients(kind, at_once=1, **settings)[0].fit([task]))[0]
        assert_states_close(together[k].state, alone.state, atol=1e-5)
        assert together[k].losses == pytest.approx(alone.losses, abs=1e-4)
        assert (together[k].num_examples, together[k].num_tokens) == (alone.num_examples, alone.num_tokens)
        assert max((alone.state[n] - task.start[n]).abs().max().item() for n in alone.state) > RATE


def plain_loop(model, examples, task, *, batch_size, window, epochs, max_norm, weight_decay=0.0, mu=0.0, trains="all"):
    """PEFT's own layers, one sequence at a time, torch's AdamW and clip_grad_norm_."""
    load_lora_state(model, task.start)
    for name, parameter in model.named_parameters():
        if "lora_" in name and trains != "all":
            parameter.requires_grad_(f"lora_{trains.upper()}" in name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=weight_decay, eps=EPS)
    batches = []
    for epoch in range(epochs):
        seed = derive_seed(task.run_seed, "order", task.round_num, task.client_id, epoch)
        batches += [[examples[i] for i in batch] for batch in epoch_order(len(examples), batch_size, seed)]
    losses = []
    for start in range(0, len(batches), window):
        group = batches[start : start + window]
        losses.append(0.0)
        for batch in group:
            total = torch.zeros(())
            for example in batch:
                places = example.supervised.nonzero().squeeze(1)
                logits = model(input_ids=example.ids[None]).logits[0]
                total = total + cross_entropy(logits[places - 1], example.ids[places], reduction="sum")
            loss = total / sum(int(e.supervised.sum()) for e in batch) / len(group)
            loss.backward()
            losses[-1] += loss.item()
        if mu:
            (mu / 2 * sum((p - old).square().sum() for p, old in zip(parameters, before, strict=True))).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return collect_lora_state(model), losses


@pytest.mark.parametrize(
    ("kind", "window", "max_norm", "decay", "mu", "trains"),
    [
        ("qwen", 1, 0.1, 0.0, 0.0, "all"),
        ("qwen", 2, 0.1, 0.0, 0.0, "all"),
        ("qwen", 1, 0.0, 0.1, 0.0, "all"),
        ("llama", 1, 0.1, 0.0, 0.0, "all"),
        ("gpt2", 2, 1.0, 0.0, 0.0, "all"),
        ("qwen", 2, 0.1, 0.0, 3.0, "all"),
        ("qwen", 1, 0.0, 0.0, 3.0, "b"),
        ("qwen", 1, 0.1, 0.1, 0.0, "a"),
        ("llama", 1, 0.1, 0.0, 0.0, "b"),
    ],
)
def test_cohort_of_one_equals_a_plain_loop_with_peft(
    local_clients, micro_model, federation, random_state, kind, window, max_norm, decay, mu, trains
):
    settings = {"batch_size": 4, "accumulate_grad_batches": window, "max_grad_norm": max_norm, "weight_decay": decay}
    settings["proximal_mu"] = mu
    clients, model = local_clients(kind, **settings)
    clients._fitting._module.weight_decay = decay
    task = dataclasses.replace(tasks_for(model, random_state, ids=[2])[0], trainable_factor=trains)
    update = clients.fit_cohort([task])[0]
    plain = create_lora_model(
        micro_model(kind), r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS.get(kind, ["q_proj", "v_proj"])
    )
    plain.get_base_model().set_attn_implementation("eager")
    state, losses = plain_loop(
        plain, federation["hr/client_2"].train, task,
        batch_size=4, window=window, epochs=1, max_norm=max_norm, weight_decay=decay, mu=mu, trains=trains,
    )  # fmt: skip
    assert update.losses == pytest.approx(losses, abs=1e-4)
    assert_states_close(update.state, state, atol=1e-6)
    for name, tensor in update.state.items():
        trained = trains == "all" or f"lora_{trains.upper()}" in name
        assert torch.equal(tensor, task.start[name]) is not trained


def test_last_partial_window_steps_and_is_divided_by_its_real_size(local_clients, random_state):
    clients, model = local_clients(batch_size=4, accumulate_grad_batches=2)
    seen = []
    task = tasks_for(model, random_state, ids=[2])[0]  # 11 records: batches of 4, 4 and 3, windows of 2 and 1
    update = clients.fit_cohort([task], on_step=lambda ids, share, tokens: seen.append(share))
    whole = local_clients(batch_size=4)[0].fit_cohort([task])[0]
    assert seen == [0.5, 1.0]
    assert update[0].losses[0] == pytest.approx(sum(whole.losses[:2]) / 2, abs=0.1)
    assert update[0].losses[1] == pytest.approx(whole.losses[2], abs=0.1)


@pytest.mark.parametrize(("window", "steps"), [(1, 6), (2, 4), (4, 2), (100, 2)])
def test_number_of_optimizer_steps(local_clients, random_state, window, steps):
    clients, model = local_clients(batch_size=4, accumulate_grad_batches=window, local_epochs=2)
    assert len(clients.fit_cohort(tasks_for(model, random_state, ids=[2]))[0].losses) == steps


def test_finished_client_does_not_move_while_others_go_on(local_clients, random_state):
    clients, model = local_clients(at_once=2, batch_size=1)
    tasks = tasks_for(model, random_state, ids=[0, 2])
    short, long = clients.fit_cohort(tasks)
    alone = local_clients(batch_size=1)[0].fit_cohort(tasks[:1])[0]
    assert (len(short.losses), len(long.losses)) == (5, 11)
    assert_states_close(short.state, alone.state, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3])
def test_same_task_twice_gives_identical_bits(local_clients, random_state, at_once):
    clients, model = local_clients(at_once=at_once, dropout=0.1)
    tasks = tasks_for(model, random_state)
    first = list(clients.fit(tasks))
    torch.rand(7)
    for one, other in zip(first, clients.fit(tasks), strict=True):
        assert_states_equal(one.state, other.state)
        assert one.losses == other.losses


def test_results_do_not_depend_on_the_order_of_tasks(local_clients, random_state):
    clients, model = local_clients(dropout=0.1)
    tasks = tasks_for(model, random_state)
    forward = {u.client_id: u.state for u in clients.fit(tasks)}
    backward = {u.client_id: u.state for u in clients.fit(tasks[::-1])}
    for client_id, state in forward.items():
        assert_states_equal(state, backward[client_id])


def test_results_do_not_depend_on_the_order_inside_a_cohort(local_clients, random_state):
    clients, model = local_clients(at_once=3, dropout=0.1)
    tasks = tasks_for(model, random_state)
    forward = {u.client_id: u.state for u in clients.fit(tasks)}
    for update in clients.fit(tasks[::-1]):
        assert_states_close(update.state, forward[update.client_id], atol=1e-5)


def test_dropout_inside_the_base_model_does_not_make_results_depend_on_earlier_draws(local_clients, random_state):
    clients, model = local_clients("gpt2", base_dropout=True)
    tasks = tasks_for(model, random_state, ids=[0])
    first = clients.fit_cohort(tasks)[0]
    torch.rand(3)
    assert_states_equal(first.state, clients.fit_cohort(tasks)[0].state)


def test_updates_come_in_the_order_of_the_tasks(local_clients, random_state):
    clients, model = local_clients(at_once=2)
    tasks = tasks_for(model, random_state, ids=[2, 0, 1])
    assert [u.client_id for u in clients.fit(tasks)] == ["hr/client_2", "hr/client_0", "hr/client_1"]


@pytest.mark.parametrize("change", [{"round_num": 2}, {"run_seed": 8}])
def test_round_and_run_seed_change_the_order_and_the_dropout(local_clients, random_state, change):
    clients, model = local_clients(dropout=0.1)
    first = clients.fit_cohort(tasks_for(model, random_state, ids=[0]))[0]
    other = clients.fit_cohort(tasks_for(model, random_state, ids=[0], **change))[0]
    assert any(not torch.equal(first.state[n], other.state[n]) for n in first.state)


def test_fit_changes_neither_the_base_nor_the_own_adapter_nor_the_start(local_clients, random_state):
    clients, model = local_clients(at_once=3, dropout=0.1)
    tasks = tasks_for(model, random_state)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    places = {n: p.data_ptr() for n, p in model.named_parameters()}
    starts = copy.deepcopy([t.start for t in tasks])
    list(clients.fit(tasks))
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == places
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)
    for task, start in zip(tasks, starts, strict=True):
        assert_states_equal(task.start, start)


def test_fit_uses_the_model_given_and_no_copy_of_it(local_clients):
    clients, model = local_clients(at_once=3)
    assert clients._fitting._module.model is model
    assert all(any(site.layer is m for m in model.modules()) for site in clients._fitting._cohort._sites)


def test_update_counts_records_and_tokens(local_clients, federation, random_state):
    clients, model = local_clients(local_epochs=2)
    update = clients.fit_cohort(tasks_for(model, random_state, ids=[1]))[0]
    assert update.department == "hr"
    assert update.num_examples == 8
    assert update.num_tokens == 2 * sum(map(len, federation["hr/client_1"].train))


def test_on_step_is_told_clients_share_and_tokens(local_clients, random_state):
    clients, model = local_clients(at_once=2, batch_size=4)
    calls = []
    updates = clients.fit_cohort(tasks_for(model, random_state, ids=[0, 2]), on_step=lambda *call: calls.append(call))
    assert [ids for ids, _, _ in calls] == [["hr/client_0", "hr/client_2"]] * 3
    assert [share for _, share, _ in calls] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert sum(tokens for _, _, tokens in calls) == sum(u.num_tokens for u in updates)


def test_loss_falls_over_epochs(local_clients, random_state):
    clients, model = local_clients(local_epochs=8, batch_size=2)
    losses = clients.fit_cohort(tasks_for(model, random_state, ids=[1]))[0].losses
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
@pytest.mark.parametrize("doing", ["fit", "evaluate"])
def test_base_linears_run_in_the_precision_asked_for(local_clients, federation, random_state, precision, dtype, doing):
    clients, model = local_clients(precision=precision)
    seen = set()
    linear = model.get_base_model().model.layers[0].self_attn.o_proj
    linear.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    task = tasks_for(model, random_state, ids=[0])[0]
    if doing == "fit":
        state = clients.fit_cohort([task])[0].state
        assert {t.dtype for t in state.values()} == {torch.float32}
    else:
        clients.evaluate([(task.start, "hr/client_0")])
    assert seen == {dtype}


def test_adapted_linears_run_in_bf16_under_bf16_mixed(local_clients, random_state):
    clients, model = local_clients(precision="bf16-mixed")
    seen = set()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    layer.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    clients.fit_cohort(tasks_for(model, random_state, ids=[0]))
    assert seen == {torch.bfloat16}


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


def test_evaluation_does_not_depend_on_how_records_fall_into_rows(local_clients, random_state, make_examples):
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


def test_fit_evaluates_the_fitted_adapter_where_the_task_asks(local_clients, random_state):
    clients, model = local_clients(at_once=2)
    tasks = tasks_for(model, random_state)
    asked = [replace(tasks[0], evaluate=True), tasks[1], replace(tasks[2], evaluate=True)]
    updates = list(clients.fit(asked))
    assert updates[1].metrics is None
    for k in (0, 2):
        assert updates[k].metrics == clients.evaluate([(updates[k].state, f"hr/client_{k}")])[0]
    for plain, update in zip(clients.fit(tasks), updates, strict=True):
        assert_states_equal(plain.state, update.state)


def test_evaluation_in_between_does_not_change_a_fit(local_clients, federation, random_state):
    clients, model = local_clients(dropout=0.1)
    tasks = tasks_for(model, random_state, ids=[0])
    first = clients.fit_cohort(tasks)[0]
    clients.evaluate([(tasks[0].start, "hr/client_1")])
    assert_states_equal(first.state, clients.fit_cohort(tasks)[0].state)


def test_metrics_add_up():
    assert Metrics(1.0, 2.0, 3, 4) + Metrics(10.0, 20.0, 30, 40) == Metrics(11.0, 22.0, 33, 44)


@pytest.mark.slow
def test_cohort_trains_on_a_4bit_base(federation, random_state):
    base, _ = load_base_model(ModelConfig(load_in_4bit=True), dtype=torch.float32)
    model = create_lora_model(base, lora_dropout=0.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    clients = LocalClients(
        fabric, LoraClientModule(model, learning_rate=RATE), federation, TrainingConfig(batch_size=8), 2
    )
    tasks = tasks_for(model, random_state, ids=[0, 1])
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    before = layer.weight.detach().clone()
    updates = clients.fit_cohort(tasks)
    assert layer.weight.dtype == torch.uint8
    assert torch.equal(layer.weight, before)
    for task, update in zip(tasks, updates, strict=True):
        assert len(update.losses) == 1
        assert all(torch.isfinite(t).all() and not torch.equal(t, task.start[n]) for n, t in update.state.items())


def cohort_sizes(local_clients, monkeypatch, tokens_of, budget, at_once="auto"):
    """Sizes of the cohorts for clients whose records all have the tokens given, four records to a micro-batch."""
    clients, _ = local_clients(at_once=at_once, batch_size=4)
    clients.data = {
        f"hr/c{i}": ClientData("hr", f"c{i}", [Example(torch.ones(n, dtype=torch.long), torch.ones(n) > 0)] * 8, [])
        for i, n in enumerate(tokens_of)
    }
    monkeypatch.setitem(fit_module.STEP_TOKENS, "cpu", budget)
    groups = clients.cohorts([ClientTask(c, 1, {}, 0) for c in clients.data])
    assert [task.client_id for group in groups for task in group] == list(clients.data)
    return [len(group) for group in groups]


@pytest.mark.parametrize(
    ("tokens_of", "budget", "sizes"),
    [
        ([10, 10, 10, 10], 100, [2, 2]),  # 40 tokens a step and client: two fit, 80 ≤ 100
        ([10, 10, 10, 10], 120, [3, 1]),
        ([100, 10, 10], 100, [1, 2]),  # 400 tokens alone are over the budget, and go alone
        ([10, 100, 10], 100, [1, 1, 1]),
        ([10] * 5, 10_000, [5]),
    ],
)
def test_auto_fills_a_step_up_to_the_budget_in_task_order(local_clients, monkeypatch, tokens_of, budget, sizes):
    assert cohort_sizes(local_clients, monkeypatch, tokens_of, budget) == sizes


def test_a_number_of_clients_at_once_is_taken_as_it_is(local_clients, monkeypatch):
    assert cohort_sizes(local_clients, monkeypatch, [10] * 5, 1, at_once=2) == [2, 2, 1]


def test_fp16_clips_true_gradients_and_clients_neither_share_nor_inherit_a_loss_scale(
    micro_model, federation, random_state
):
    def fit(ids):
        model = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8, lora_dropout=0.0)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", device="cpu")])
        training = TrainingConfig(batch_size=4, max_grad_norm=0.5)
        clients = LocalClients(fabric, SteadyModule(model, learning_rate=RATE), federation, training, 3)
        tasks = tasks_for(model, random_state, ids=ids)
        assert [len(cohort) for cohort in clients.cohorts(tasks)] == [1] * len(ids)
        return list(clients.fit(tasks)), collect_lora_state(model)

    (first, second), _ = fit([1, 2])
    (alone,), _ = fit([2])
    assert_states_equal(second.state, alone.state)
    # Were the scaled gradients clipped (norm times 65,536), AdamW with its large eps would hardly move.
    start = tasks_for(create_lora_model(micro_model("qwen"), r=4, lora_alpha=8), random_state, ids=[2])[0].start
    wanted = fit_fp32_like(micro_model, federation, random_state)
    moved = max((alone.state[n] - start[n]).abs().max().item() for n in start)
    assert moved > 1e-4
    assert_states_close(alone.state, wanted, atol=0.2 * moved)


def fit_fp32_like(micro_model, federation, random_state):
    model = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8, lora_dropout=0.0)
    training = TrainingConfig(batch_size=4, max_grad_norm=0.5)
    clients = LocalClients(
        Fabric(accelerator="cpu", devices=1), SteadyModule(model, learning_rate=RATE), federation, training
    )
    return clients.fit_cohort(tasks_for(model, random_state, ids=[2]))[0].state


# Memory that runs out

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "68719476736 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB."),
    "cpu": RuntimeError(CPU_ALLOCATOR),
    "python": MemoryError(),
}


def room_for(clients, monkeypatch, most, error, at_step=2):
    """Have the second optimizer step fail for more than `most` clients, once it is taken; gives the sizes tried."""
    fit, step, tried, steps = clients._fit_part, clients._fitting._step, [], []

    def fit_part(tasks, on_step):
        tried.append(len(tasks))
        steps.clear()
        return fit(tasks, on_step)

    def fail(micro, optimizer, generators, starts):
        losses = step(micro, optimizer, generators, starts)
        steps.append(losses)
        if len(micro) > most and len(steps) == at_step:
            raise error
        return losses

    monkeypatch.setattr(clients, "_fit_part", fit_part)
    monkeypatch.setattr(clients._fitting, "_step", fail)
    return tried


@pytest.mark.parametrize("at_step", [1, 2])
@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_clients_that_are_too_many_for_the_memory_are_fitted_in_parts_of_half_the_size(
    local_clients, random_state, monkeypatch, log_messages, error, at_step
):
    settings = {"dropout": 0.1, "batch_size": 4, "local_epochs": 2}
    clients, model = local_clients(at_once=3, **settings)
    rounds = [[replace(t, evaluate=True) for t in tasks_for(model, random_state, round_num=r)] for r in (1, 2)]
    alone = [list(local_clients(at_once=1, **settings)[0].fit(tasks)) for tasks in rounds]
    tried = room_for(clients, monkeypatch, 2, error, at_step)
    for tasks, wanted in zip(rounds, alone, strict=True):
        updates = list(clients.fit(tasks))
        assert [u.client_id for u in updates] == [t.client_id for t in tasks]
        for update, other in zip(updates, wanted, strict=True):
            assert_states_close(update.state, other.state, atol=1e-5)
            assert update.losses == pytest.approx(other.losses, abs=1e-4)
            assert (update.round_num, update.num_examples, update.num_tokens) == (
                other.round_num, other.num_examples, other.num_tokens
            )  # fmt: skip
            assert update.metrics.loss_sum == pytest.approx(other.metrics.loss_sum, rel=1e-4)
    assert tried == [3, 2, 1, 2, 1]
    assert log_messages == ["WARNING out of memory with 3 clients at once; continuing with 2"]


def test_a_later_cohort_of_other_size_keeps_to_the_smaller_parts(local_clients, random_state, monkeypatch):
    clients, model = local_clients(at_once=2)
    tried = room_for(clients, monkeypatch, 1, OUT_OF_MEMORY["torch"], at_step=1)
    tasks = tasks_for(model, random_state)
    assert [u.client_id for u in clients.fit(tasks)] == [t.client_id for t in tasks]
    assert [u.client_id for u in clients.fit(tasks[:1])] == ["hr/client_0"]
    assert [u.client_id for u in clients.fit(tasks[1:])] == ["hr/client_1", "hr/client_2"]
    assert tried == [2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize(
    ("at_once", "most", "tried", "who"),
    [
        (3, 1, [3, 2], "hr/client_0 and 1 others: out of memory"),
        (2, 0, [2, 1], "hr/client_0 and 0 others: out of memory"),
        (1, 0, [1], "hr/client_0 and 0 others: out of memory"),
    ],
)
def test_memory_that_runs_out_again_or_for_one_client_ends_the_run_with_advice(
    local_clients, random_state, monkeypatch, log_messages, error, at_once, most, tried, who
):
    clients, model = local_clients(at_once=at_once)
    seen = room_for(clients, monkeypatch, most, error, at_step=1)
    with pytest.raises(RunError) as caught:
        list(clients.fit(tasks_for(model, random_state)))
    assert str(caught.value).startswith(who)
    for advice in ("training.clients_at_once", "training.batch_size", "data.max_length", "lora.r"):
        assert advice in str(caught.value)
    assert caught.value.__cause__ is error
    assert seen == tried
    assert len(log_messages) == len(tried) - 1


def test_processes_that_share_a_fit_do_not_try_again(local_clients, random_state, monkeypatch):
    clients, model = local_clients(at_once=3)
    tried = []

    def fail(tasks, on_step):
        tried.append(len(tasks))
        raise OUT_OF_MEMORY["torch"]

    monkeypatch.setattr(clients, "_fit_part", fail)
    monkeypatch.setattr(clients, "_shard", object())
    with pytest.raises(RunError, match="hr/client_0 and 2 others: out of memory"):
        list(clients.fit(tasks_for(model, random_state)))
    assert tried == [3]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), RuntimeError(""), ValueError("DefaultCPUAllocator")],
)
def test_another_error_of_a_fit_passes_through_untouched(local_clients, random_state, monkeypatch, log_messages, error):
    clients, model = local_clients(at_once=3)
    tried = room_for(clients, monkeypatch, 0, error, at_step=1)
    with pytest.raises(type(error)) as caught:
        list(clients.fit(tasks_for(model, random_state)))
    assert caught.value is error
    assert tried == [3]
    assert log_messages == []


def test_a_fit_that_failed_leaves_nothing_behind(local_clients, random_state, monkeypatch):
    clients, model = local_clients(at_once=3, dropout=0.1)
    tasks = tasks_for(model, random_state)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    wanted = list(clients.fit(tasks))
    with monkeypatch.context() as patch:
        room_for(clients, patch, 0, RuntimeError("something else"))
        with pytest.raises(RuntimeError, match="something else"):
            list(clients.fit(tasks))
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    for one, other in zip(clients.fit(tasks), wanted, strict=True):
        assert_states_equal(one.state, other.state)
        assert one.losses == other.losses


# Cohorts that were fitted before


class Book:
    """A journal that knows the updates it is given, by client, and notes what it is told."""

    def __init__(self, known=()):
        self.known = {update.client_id: update for update in known}
        self.events = []

    def replay(self, cohort):
        ids = [task.client_id for task in cohort]
        return [self.known[i] for i in ids] if self.known.keys() >= set(ids) else None

    def record(self, updates):
        self.events.append(("record", *[u.client_id[-1] for u in updates]))


@pytest.mark.parametrize(
    ("at_once", "known", "fitted"),
    [
        (1, "", [("0",), ("1",), ("2",)]),
        (1, "1", [("0",), ("2",)]),
        (1, "02", [("1",)]),
        (1, "012", []),
        (2, "2", [("0", "1")]),
        (2, "01", [("2",)]),
        (2, "0", [("0", "1"), ("2",)]),  # half of a cohort is none
        (3, "012", []),
    ],
)
def test_cohorts_in_the_journal_are_not_fitted_again_and_fresh_ones_are_recorded_before_they_are_handed_on(
    local_clients, random_state, at_once, known, fitted
):
    clients, model = local_clients(at_once=at_once, dropout=0.1)
    tasks = tasks_for(model, random_state)
    wanted = list(clients.fit(tasks))
    book = Book(u for u in wanted if u.client_id[-1] in known)
    asked = []
    got = []
    for update in clients.fit(tasks, lambda ids, share, tokens: asked.append(tuple(i[-1] for i in ids)), book):
        book.events.append(("update", update.client_id[-1]))
        got.append(update)
    assert sorted(set(asked)) == fitted
    assert [u.client_id for u in got] == [t.client_id for t in tasks]
    for one, other in zip(got, wanted, strict=True):
        assert_states_equal(one.state, other.state)
        assert (one.losses, one.num_examples, one.num_tokens) == (other.losses, other.num_examples, other.num_tokens)
    events = []
    for cohort in clients.cohorts(tasks):
        ids = tuple(t.client_id[-1] for t in cohort)
        events += [("record", *ids)] if ids in fitted else []
        events += [("update", i) for i in ids]
    assert book.events == events


def test_a_cohort_of_several_parts_is_recorded_once_and_whole(local_clients, random_state, monkeypatch):
    clients, model = local_clients(at_once=3)
    room_for(clients, monkeypatch, 2, OUT_OF_MEMORY["torch"], at_step=1)
    book = Book()
    list(clients.fit(tasks_for(model, random_state), None, book))
    assert book.events == [("record", "0", "1", "2")]


def test_a_round_that_is_left_midway_goes_on_from_the_journal_on_the_disk(
    local_clients, random_state, monkeypatch, tmp_path
):
    clients, model = local_clients(at_once=1, dropout=0.1)
    tasks = [replace(task, evaluate=True) for task in tasks_for(model, random_state)]
    wanted = list(clients.fit(tasks))
    writer = BackgroundWriter()
    journal = Journal(tmp_path, writer)
    stopped = clients.fit(tasks, None, journal)
    assert [next(stopped).client_id for _ in range(2)] == ["hr/client_0", "hr/client_1"]
    stopped.close()
    writer.close()
    fit, asked = clients.fit_cohort, []

    def watch(cohort, on_step):
        asked.extend(task.client_id for task in cohort)
        return fit(cohort, on_step)

    monkeypatch.setattr(clients, "fit_cohort", watch)
    got = list(clients.fit(tasks, None, Journal(tmp_path, writer)))
    writer.close()
    assert asked == ["hr/client_2"]
    assert [u.client_id for u in got] == [t.client_id for t in tasks]
    for one, other in zip(got, wanted, strict=True):
        assert_states_equal(one.state, other.state)
        assert (one.losses, one.metrics, one.num_tokens) == (other.losses, other.metrics, other.num_tokens)


def test_records_are_evaluated_one_by_one_as_all_together(local_clients, federation, random_state):
    clients, model = local_clients()
    client_id, data = next(iter(federation.items()))
    state = random_state(model)
    sums = clients.evaluate_records(state, data.eval)
    (together,) = clients.evaluate([(state, client_id)])
    assert sums.shape == (len(data.eval), 3)
    np.testing.assert_allclose(sums.sum(0), [together.loss_sum, together.correct, together.num_tokens], rtol=1e-5)
    alone = [clients.evaluate_records(state, [example])[0] for example in data.eval]
    np.testing.assert_allclose(sums, alone, rtol=1e-5)


def test_gain_is_the_scale_of_a_judged_adapter(local_clients, federation, random_state):
    clients, model = local_clients()
    data = next(iter(federation.values()))
    state = random_state(model)
    doubled = {name: tensor * (2 if "lora_B" in name else 1) for name, tensor in state.items()}
    np.testing.assert_allclose(
        clients.evaluate_records(state, data.eval, 2.0), clients.evaluate_records(doubled, data.eval), rtol=1e-5
    )


def test_a_worn_adapter_answers_as_peft_would_and_comes_off_again(local_clients, random_state):
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
        wanted = model(input_ids=ids).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, before, atol=1e-3)
    assert torch.equal(before, after)
