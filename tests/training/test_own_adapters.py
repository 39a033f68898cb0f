"""Fits of own adapters against loops in plain PyTorch and PEFT, one record at a time."""

from dataclasses import replace

import pytest
import torch
from client_fits import EPS, RATE, assert_states_close, tasks_for
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn.functional import cross_entropy

from fl_lightning.config import PersonalConfig
from fl_lightning.data.packing import epoch_order
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.state import FederationState
from fl_lightning.seeding import derive_seed
from fl_lightning.training.own_adapters import Partners, own_adapter, own_tasks

SETTINGS = {"batch_size": 4, "local_epochs": 2, "max_grad_norm": 0.1}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def peft_names(state, adapter):
    """A state with the parameter names of one of several adapters of a PEFT model."""
    return {name.replace(".weight", f".{adapter}.weight"): tensor for name, tensor in state.items()}


def load(model, state, adapter):
    missing = model.load_state_dict(peft_names(state, adapter), strict=False)
    assert not missing.unexpected_keys


def loss_of(model, batch):
    total = torch.zeros(())
    for example in batch:
        places = example.supervised.nonzero().squeeze(1)
        logits = model(input_ids=example.ids[None]).logits[0]
        total = total + cross_entropy(logits[places - 1], example.ids[places], reduction="sum")
    return total / sum(int(example.supervised.sum()) for example in batch)


def train(model, adapter, examples, task, penalty=lambda name, parameter: 0.0):
    """Two epochs of AdamW on one adapter of a PEFT model, gradients clipped."""
    named = {n: p for n, p in model.named_parameters() if f".{adapter}." in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in named)
    optimizer = torch.optim.AdamW(named.values(), lr=RATE, weight_decay=0.0, eps=EPS)
    for epoch in range(SETTINGS["local_epochs"]):
        seed = derive_seed(task.run_seed, "order", task.round_num, task.client_id, epoch)
        for indices in epoch_order(len(examples), SETTINGS["batch_size"], seed):
            loss = loss_of(model, [examples[i] for i in indices])
            (loss + sum(penalty(n, p) for n, p in named.items())).backward()
            torch.nn.utils.clip_grad_norm_(named.values(), SETTINGS["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
    return {name.replace(f".{adapter}.", "."): p.detach().clone() for name, p in named.items()}


def mix(model):
    """Let a PEFT model use 0.3 of its adapter v and 0.7 of w, at lora_alpha / r = 2."""
    model.base_model.set_adapter(["v", "w"])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling.update(v=2.0 * 0.3, w=2.0 * 0.7)


@pytest.fixture
def plain(micro_model):
    """A PEFT model with adapters v, which is active, and w."""
    base = micro_model("qwen")
    base.set_attn_implementation("eager")
    model = get_peft_model(base, LORA, "v")
    model.add_adapter("w", LORA)
    return model


@pytest.fixture
def round_state(local_clients, random_state):
    """A state in which department and three clients have adapters; the clients; a task for each of them."""
    clients, model = local_clients(at_once=3, **SETTINGS)
    tasks = tasks_for(model, random_state)
    own = {task.client_id: random_state(model, seed=20 + k) for k, task in enumerate(tasks)}
    initial = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in random_state(model, seed=9).items()}
    state = FederationState(3, initial, {"hr": random_state(model, seed=8)}, own_adapters=own)
    return state, clients, tasks


def test_ditto_equals_a_plain_loop_with_its_penalty(plain, round_state, federation):
    state, clients, tasks = round_state
    own = own_tasks(PersonalConfig(own="during", ditto_lambda=0.7), state, tasks)
    updates = clients.fit_cohort(own)
    w = peft_names(state.departments["hr"], "v")
    for task, update in zip(own, updates, strict=True):
        load(plain, state.own_adapters[task.client_id], "v")
        expected = train(
            plain, "v", federation[task.client_id].train, task,
            penalty=lambda name, v: 0.7 / 2 * (v - w[name]).square().sum(),
        )  # fmt: skip
        assert_states_close(update.state, dict(sorted(expected.items())), atol=1e-5)
        assert update.is_own


def test_ditto_with_lambda_0_trains_as_if_alone_and_a_large_one_pulls_to_the_department(round_state):
    state, clients, tasks = round_state

    def distances(strength):
        updates = clients.fit_cohort(own_tasks(PersonalConfig(own="during", ditto_lambda=strength), state, tasks))
        w = state.departments["hr"]
        return [sum(float((u.state[n] - w[n]).square().sum()) for n in w) for u in updates], updates

    alone = clients.fit_cohort([replace(t, start=state.own_adapters[t.client_id], is_own=True) for t in tasks])
    without, updates = distances(0.0)
    for update, expected in zip(updates, alone, strict=True):
        assert all(torch.equal(update.state[n], expected.state[n]) for n in expected.state)
    assert all(pulled < free for pulled, free in zip(distances(100.0)[0], without, strict=True))


def test_apfl_equals_a_plain_loop_through_the_mixture_of_two_adapters(plain, round_state, federation):
    state, clients, tasks = round_state
    own = own_tasks(PersonalConfig(own="during", apfl_alpha=0.3), state, tasks)
    updates = clients.fit_cohort(own)
    load(plain, state.departments["hr"], "w")
    mix(plain)
    for task, update in zip(own, updates, strict=True):
        load(plain, state.own_adapters[task.client_id], "v")
        expected = train(plain, "v", federation[task.client_id].train, task)
        assert_states_close(update.state, dict(sorted(expected.items())), atol=1e-5)


def test_a_clients_adapter_under_apfl_gives_peft_the_losses_of_the_mixture(plain, round_state, federation):
    state, clients, tasks = round_state
    config = PersonalConfig(own="during", apfl_alpha=0.3)
    adapter = own_adapter(config, state, "hr/client_1")
    metrics = clients.evaluate([(adapter, "hr/client_1")])[0]
    load(plain, state.own_adapters["hr/client_1"], "v")
    load(plain, state.departments["hr"], "w")
    mix(plain)
    with torch.no_grad():
        expected = loss_of(plain, federation["hr/client_1"].eval)
    assert metrics.loss_sum / metrics.num_tokens == pytest.approx(float(expected), rel=1e-5)


def test_an_own_adapter_starts_from_the_common_start_and_then_goes_on_from_itself():
    a = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.zeros(2, 1)}
    moved = {name: tensor + 1 for name, tensor in a.items()}
    state = FederationState(1, a, {"hr": moved}, own_adapters={"hr/b": moved})
    tasks = [ClientTask(c, 2, moved, 7, trainable_factor="b", frozen_product=moved) for c in ("hr/a", "hr/b")]
    first, second = own_tasks(PersonalConfig(own="during"), state, tasks)
    assert (first.start, second.start) == (a, moved)
    for task in (first, second):
        assert (task.is_own, task.trainable_factor, task.frozen_product, task.relative_scaling) == (True, "all", {}, 1)
    assert own_tasks(PersonalConfig(), state, tasks) == []


def test_fedalt_equals_a_plain_loop_beside_the_mean_of_the_others(plain, round_state, federation):
    state, clients, tasks = round_state
    own = own_tasks(PersonalConfig(own="during", fedalt_weight=0.7), state, tasks)
    updates = clients.fit_cohort(own)
    mix(plain)
    for task, update in zip(own, updates, strict=True):
        first, second = (adapter for c, adapter in state.own_adapters.items() if c != task.client_id)
        load(plain, {name: (first[name] + second[name]) / 2 for name in first}, "w")
        load(plain, state.own_adapters[task.client_id], "v")
        expected = train(plain, "v", federation[task.client_id].train, task)
        assert_states_close(update.state, dict(sorted(expected.items())), atol=1e-5)


def test_a_clients_adapter_under_fedalt_gives_peft_the_losses_of_the_mixture(plain, round_state, federation):
    state, clients, _ = round_state
    adapter = own_adapter(PersonalConfig(own="during", fedalt_weight=0.7), state, "hr/client_1")
    metrics = clients.evaluate([(adapter, "hr/client_1")])[0]
    first, second = (state.own_adapters[f"hr/client_{k}"] for k in (0, 2))
    load(plain, state.own_adapters["hr/client_1"], "v")
    load(plain, {name: (first[name] + second[name]) / 2 for name in first}, "w")
    mix(plain)
    with torch.no_grad():
        expected = loss_of(plain, federation["hr/client_1"].eval)
    assert metrics.loss_sum / metrics.num_tokens == pytest.approx(float(expected), rel=1e-5)


def test_the_others_of_fedalt_are_those_of_the_department_that_have_an_own_adapter():
    def adapter(value):
        return {"q.lora_A.weight": torch.full((1, 2), value), "q.lora_B.weight": torch.full((2, 1), value)}

    own = {"hr/a": adapter(1.0), "hr/b": adapter(5.0), "it/a": adapter(9.0)}
    state = FederationState(2, adapter(0.0), {"hr": adapter(7.0), "it": adapter(7.0)}, own_adapters=own)
    partners = Partners(PersonalConfig(own="during", fedalt_weight=0.5), state)
    for client_id, a in (("hr/a", 5.0), ("hr/b", 1.0), ("hr/new", 3.0)):
        partner = partners.of(client_id)
        assert partner["q.lora_A.weight"].tolist() == [[a, a]]
        assert partner["q.lora_B.weight"].tolist() == [[a / 2], [a / 2]]
    assert partners.of("it/a") == {}
