from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from client_fits import assert_states_close, assert_states_equal, tasks_for

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import RunError
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.training.cohorts import STEP_TOKENS


def test_results_do_not_depend_on_the_order_of_tasks(local_clients, random_state):
    clients, model = local_clients(dropout=0.1)
    tasks = tasks_for(model, random_state)
    forward = {u.client_id: u.state for u in clients.fit(tasks)}
    backward = {u.client_id: u.state for u in clients.fit(tasks[::-1])}
    for client_id, state in forward.items():
        assert_states_equal(state, backward[client_id])


def test_updates_come_in_the_order_of_the_tasks(local_clients, random_state):
    clients, model = local_clients(at_once=2)
    tasks = tasks_for(model, random_state, ids=[2, 0, 1])
    assert [u.client_id for u in clients.fit(tasks)] == ["hr/client_2", "hr/client_0", "hr/client_1"]


def test_fit_uses_the_model_itself(local_clients):
    clients, model = local_clients(at_once=3)
    assert clients._fitting._module.model is model
    assert all(any(site.layer is m for m in model.modules()) for site in clients._fitting._cohort._sites)


def test_fit_evaluates_the_fitted_adapter_if_the_task_asks(local_clients, random_state):
    clients, model = local_clients(at_once=2)
    tasks = tasks_for(model, random_state)
    asked = [replace(tasks[0], evaluate=True), tasks[1], replace(tasks[2], evaluate=True)]
    updates = list(clients.fit(asked))
    assert updates[1].metrics is None
    for k in (0, 2):
        assert updates[k].metrics == clients.evaluate([(updates[k].state, f"hr/client_{k}")])[0]
    for plain, update in zip(clients.fit(tasks), updates, strict=True):
        assert_states_equal(plain.state, update.state)


# Cohorts


@pytest.mark.parametrize(("at_once", "sizes"), [("auto", [1, 2, 1]), (3, [3, 1])])
def test_cohorts_are_filled_in_task_order(local_clients, monkeypatch, at_once, sizes):
    clients, _ = local_clients(at_once=at_once, batch_size=4)
    clients.data = {
        f"hr/c{i}": ClientData("hr", f"c{i}", [Example(torch.ones(n, dtype=torch.long), torch.ones(n) > 0)] * 8, [])
        for i, n in enumerate((100, 10, 10, 10))
    }
    monkeypatch.setitem(STEP_TOKENS, "cpu", 100)  # two clients with 4 records of 10 tokens
    cohorts = clients.cohorts([ClientTask(client_id, 1, {}, 0) for client_id in clients.data])
    assert [task.client_id for cohort in cohorts for task in cohort] == list(clients.data)
    assert [len(cohort) for cohort in cohorts] == sizes


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

    def fail(rows, *rest):
        losses = step(rows, *rest)
        steps.append(losses)
        if len(losses) > most and len(steps) == at_step:
            raise error
        return losses

    monkeypatch.setattr(clients, "_fit_part", fit_part)
    monkeypatch.setattr(clients._fitting, "_step", fail)
    return tried


@pytest.mark.parametrize(("error", "at_step"), [(OUT_OF_MEMORY["torch"], 1), (OUT_OF_MEMORY["python"], 2)])
def test_cohort_that_does_not_fit_into_memory_is_fitted_in_parts_of_half_its_size(
    local_clients, random_state, monkeypatch, log_messages, error, at_step
):
    settings = {"dropout": 0.1, "batch_size": 4, "local_epochs": 2}
    clients, model = local_clients(at_once=3, **settings)
    rounds = [[replace(t, evaluate=True) for t in tasks_for(model, random_state, round_num=r)] for r in (1, 2)]
    alone = [list(local_clients(at_once=1, **settings)[0].fit(tasks)) for tasks in rounds]
    tried = room_for(clients, monkeypatch, 2, error, at_step)
    for tasks, expected in zip(rounds, alone, strict=True):
        updates = list(clients.fit(tasks))
        assert [u.client_id for u in updates] == [t.client_id for t in tasks]
        for update, other in zip(updates, expected, strict=True):
            assert_states_close(update.state, other.state, atol=1e-5)
            assert update.losses == pytest.approx(other.losses, abs=1e-4)
            assert (update.round_num, update.num_examples, update.num_tokens) == (
                other.round_num, other.num_examples, other.num_tokens
            )  # fmt: skip
            assert update.metrics.loss_sum == pytest.approx(other.metrics.loss_sum, rel=1e-4)
    assert tried == [3, 2, 1, 2, 1]
    assert log_messages == ["WARNING out of memory with 3 clients at once; continuing with 2"]


def test_later_cohorts_keep_to_the_smaller_parts(local_clients, random_state, monkeypatch):
    clients, model = local_clients(at_once=2)
    tried = room_for(clients, monkeypatch, 1, OUT_OF_MEMORY["torch"], at_step=1)
    tasks = tasks_for(model, random_state)
    assert [u.client_id for u in clients.fit(tasks)] == [t.client_id for t in tasks]
    assert [u.client_id for u in clients.fit(tasks[:1])] == ["hr/client_0"]
    assert [u.client_id for u in clients.fit(tasks[1:])] == ["hr/client_1", "hr/client_2"]
    assert tried == [2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("at_once", "most", "tried", "who", "error"),
    [
        (3, 1, [3, 2], "hr/client_0 and 1 others: out of memory", OUT_OF_MEMORY["torch"]),
        (2, 0, [2, 1], "hr/client_0 and 0 others: out of memory", OUT_OF_MEMORY["cpu"]),
        (1, 0, [1], "hr/client_0 and 0 others: out of memory", OUT_OF_MEMORY["python"]),
    ],
)
def test_second_lack_of_memory_or_one_for_a_single_client_ends_the_run_with_advice(
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


def test_data_parallel_processes_do_not_try_again(local_clients, random_state, monkeypatch):
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
def test_other_errors_of_a_fit_pass_through(local_clients, random_state, monkeypatch, log_messages, error):
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
    expected = list(clients.fit(tasks))
    with monkeypatch.context() as patch:
        room_for(clients, patch, 0, RuntimeError("something else"))
        with pytest.raises(RuntimeError, match="something else"):
            list(clients.fit(tasks))
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    for one, other in zip(clients.fit(tasks), expected, strict=True):
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
def test_cohorts_in_the_journal_are_not_fitted_again_and_others_are_recorded_before_they_are_returned(
    local_clients, random_state, at_once, known, fitted
):
    clients, model = local_clients(at_once=at_once, dropout=0.1)
    tasks = tasks_for(model, random_state)
    expected = list(clients.fit(tasks))
    book = Book(u for u in expected if u.client_id[-1] in known)
    asked = []
    got = []
    for update in clients.fit(tasks, lambda ids, share, tokens: asked.append(tuple(i[-1] for i in ids)), book):
        book.events.append(("update", update.client_id[-1]))
        got.append(update)
    assert sorted(set(asked)) == fitted
    assert [u.client_id for u in got] == [t.client_id for t in tasks]
    for one, other in zip(got, expected, strict=True):
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


def test_interrupted_round_continues_from_the_journal_on_disk(local_clients, random_state, monkeypatch, tmp_path):
    clients, model = local_clients(at_once=1, dropout=0.1)
    tasks = [replace(task, evaluate=True) for task in tasks_for(model, random_state)]
    expected = list(clients.fit(tasks))
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
    for one, other in zip(got, expected, strict=True):
        assert_states_equal(one.state, other.state)
        assert (one.losses, one.metrics, one.num_tokens) == (other.losses, other.metrics, other.num_tokens)
