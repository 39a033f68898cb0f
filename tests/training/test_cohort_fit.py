from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from client_fits import EPS, RATE, TARGETS, SteadyModule, assert_states_close, assert_states_equal, tasks_for
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch.nn.functional import cross_entropy

from fl_lightning.config import ModelConfig, TrainingConfig
from fl_lightning.data.packing import epoch_order
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, load_lora_state
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.training.local_clients import LocalClients


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
        targets = sum(int(example.supervised.sum()) for batch in group for example in batch)
        for batch in group:
            total = torch.zeros(())
            for example in batch:
                places = example.supervised.nonzero().squeeze(1)
                logits = model(input_ids=example.ids[None]).logits[0]
                total = total + cross_entropy(logits[places - 1], example.ids[places], reduction="sum")
            loss = total / targets
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


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("kind", ["qwen", "bloom"])
def test_accumulation_counts_targets(local_clients, federation, random_state, kind, at_once):
    """Four micro-batches of 2 are one batch of 8, the incomplete last window (3 of 11 records) and dropout included."""
    settings = {"local_epochs": 2, "at_once": at_once, "max_grad_norm": 0.1, "dropout": 0.1}
    accumulated, model = local_clients(kind, batch_size=2, accumulate_grad_batches=4, **settings)
    whole, _ = local_clients(kind, batch_size=8, **settings)
    targets = [int(example.supervised.sum()) for example in federation["hr/client_2"].train]
    assert max(targets) > 4 * min(targets)
    tasks = tasks_for(model, random_state)
    for one, other in zip(accumulated.fit(tasks), whole.fit(tasks), strict=True):
        assert len(one.losses) == len(other.losses)
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
        assert_states_close(one.state, other.state, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "single"])
def test_dropout_is_the_same_in_every_layout(local_clients, random_state, layout):
    updates = []
    for name in ("packed", layout):
        clients, model = local_clients(at_once=3, dropout=0.3)
        clients._fitting._module.layout = name
        model.get_base_model().set_attn_implementation("fl_packed" if name == "packed" else "sdpa")
        updates.append(list(clients.fit(tasks_for(model, random_state))))
    for packed, other in zip(*updates, strict=True):
        assert packed.losses == pytest.approx(other.losses, abs=1e-4)
        assert_states_close(packed.state, other.state, atol=1e-5)


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


@pytest.mark.parametrize("change", [{"round_num": 2}, {"run_seed": 8}])
def test_round_and_run_seed_change_the_order_and_the_dropout(local_clients, random_state, change):
    clients, model = local_clients(dropout=0.1)
    first = clients.fit_cohort(tasks_for(model, random_state, ids=[0]))[0]
    other = clients.fit_cohort(tasks_for(model, random_state, ids=[0], **change))[0]
    assert any(not torch.equal(first.state[n], other.state[n]) for n in first.state)


def test_fit_changes_neither_base_model_nor_built_in_adapter_nor_start(local_clients, random_state):
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


def test_update_counts_records_and_tokens(local_clients, federation, random_state):
    clients, model = local_clients(local_epochs=2)
    update = clients.fit_cohort(tasks_for(model, random_state, ids=[1]))[0]
    assert update.department == "hr"
    assert update.num_examples == 8
    assert update.num_tokens == 2 * sum(map(len, federation["hr/client_1"].train))


def test_on_step_gets_clients_share_and_tokens(local_clients, random_state):
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
def test_base_linears_run_in_the_requested_precision(local_clients, federation, random_state, precision, dtype, doing):
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
    expected = fit_fp32_like(micro_model, federation, random_state)
    moved = max((alone.state[n] - start[n]).abs().max().item() for n in start)
    assert moved > 1e-4
    assert_states_close(alone.state, expected, atol=0.2 * moved)


def fit_fp32_like(micro_model, federation, random_state):
    model = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8, lora_dropout=0.0)
    training = TrainingConfig(batch_size=4, max_grad_norm=0.5)
    clients = LocalClients(
        Fabric(accelerator="cpu", devices=1), SteadyModule(model, learning_rate=RATE), federation, training
    )
    return clients.fit_cohort(tasks_for(model, random_state, ids=[2]))[0].state
