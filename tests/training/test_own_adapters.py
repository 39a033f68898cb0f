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
from fl_lightning.linalg.own_mixture import ALPHA, alpha_of, factors_of, gates_like, weights_of
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


def train(model, adapter, examples, task, penalty=lambda name, parameter: 0.0, also=None):
    """Two epochs of AdamW on one adapter of a PEFT model, and on what has `also` in its name; gradients clipped."""
    named = {n: p for n, p in model.named_parameters() if f".{adapter}." in n or (also is not None and also in n)}
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


def train_with_alpha(model, examples, task, alpha, rate):
    """As `train` of adapter v in a mixture with w; at its first step α descends by the paper's inner product.

    The gradient at the mixed weights is that of the base layers' weights, to which the products are added.
    """
    named = {n: p for n, p in model.named_parameters() if ".v." in n}
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    bases = [layer.base_layer.weight for layer in layers]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in (*named.values(), *bases):
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(named.values(), lr=RATE, weight_decay=0.0, eps=EPS)
    for epoch in range(SETTINGS["local_epochs"]):
        seed = derive_seed(task.run_seed, "order", task.round_num, task.client_id, epoch)
        for step, indices in enumerate(epoch_order(len(examples), SETTINGS["batch_size"], seed)):
            model.base_model.set_adapter(["v", "w"])
            for layer in layers:
                layer.scaling.update(v=2.0 * alpha, w=2.0 * (1 - alpha))
            for n, parameter in model.named_parameters():
                parameter.requires_grad_(n in named or any(parameter is base for base in bases))
            loss_of(model, [examples[i] for i in indices]).backward()
            if (epoch, step) == (0, 0):
                products = {
                    key: [2.0 * layer.lora_B[key].weight @ layer.lora_A[key].weight for layer in layers]
                    for key in ("v", "w")
                }
                pairs = zip(bases, products["v"], products["w"], strict=True)
                gradient = sum(float((base.grad * (v - w)).detach().sum()) for base, v, w in pairs)
                descended = min(1.0, max(0.0, alpha - rate * gradient))
            torch.nn.utils.clip_grad_norm_(named.values(), SETTINGS["max_grad_norm"])
            optimizer.step()
            model.zero_grad()
            alpha = descended
    return {name.replace(".v.", "."): p.detach().clone() for name, p in named.items()}, alpha


@pytest.mark.parametrize("rate", [0.2, 1e4])
def test_apfl_with_a_rate_equals_a_plain_loop_whose_alpha_descends_once(plain, round_state, federation, rate):
    state, clients, tasks = round_state
    config = PersonalConfig(own="during", apfl_alpha=0.3, apfl_rate=rate)
    before = {"hr/client_0": 0.3, "hr/client_1": 0.6, "hr/client_2": 0.0}
    own = {c: {**adapter, ALPHA: torch.tensor([before[c]])} for c, adapter in state.own_adapters.items()}
    tasks = own_tasks(config, replace(state, own_adapters=own), tasks)
    updates = clients.fit_cohort(tasks)
    load(plain, state.departments["hr"], "w")
    after = {}
    for task, update in zip(tasks, updates, strict=True):
        load(plain, state.own_adapters[task.client_id], "v")
        expected, alpha = train_with_alpha(plain, federation[task.client_id].train, task, before[task.client_id], rate)
        after[task.client_id] = alpha_of(update.state)
        assert after[task.client_id] == pytest.approx(alpha, abs=1e-5)
        assert_states_close(factors_of(update.state), dict(sorted(expected.items())), atol=1e-5)
    moved = [c for c in after if after[c] not in (before[c], 0.0, 1.0)]
    assert {"hr/client_0", "hr/client_1"} <= set(moved) if rate < 1 else moved == []


def test_apfl_with_a_rate_and_a_client_alone_is_the_same_as_in_a_cohort(round_state):
    state, clients, tasks = round_state
    tasks = own_tasks(PersonalConfig(own="during", apfl_alpha=0.5, apfl_rate=0.5), state, tasks)
    tasks = [replace(task, start={**task.start, ALPHA: torch.tensor([0.5])}) for task in tasks]
    for update, task in zip(clients.fit_cohort(tasks), tasks, strict=True):
        (alone,) = clients.fit_cohort([task])
        assert_states_close(update.state, alone.state, atol=1e-5)


def test_an_own_adapter_under_apfl_with_a_rate_begins_at_apfl_alpha_and_is_used_with_the_clients_own():
    def adapter(value):
        return {"q.lora_A.weight": torch.full((1, 2), value), "q.lora_B.weight": torch.full((2, 1), value)}

    config = PersonalConfig(own="during", apfl_alpha=0.25, apfl_rate=0.1)
    own = {"hr/a": {**adapter(2.0), ALPHA: torch.tensor([0.75])}}
    state = FederationState(2, adapter(0.0), {"hr": adapter(4.0)}, own_adapters=own)
    first, second = own_tasks(config, state, [ClientTask(c, 3, {}, 7) for c in ("hr/a", "hr/b")])
    assert (alpha_of(first.start), alpha_of(second.start)) == (0.75, 0.25)
    assert (first.relative_scaling, first.alpha_rate, first.frozen_product) == (1.0, 0.1, state.departments["hr"])
    used = own_adapter(config, state, "hr/a")
    assert used["q.lora_B.weight"].tolist() == [[0.75 * 2, 0.25 * 4]] * 2
    assert used["q.lora_A.weight"].tolist() == [[2, 2], [4, 4]]
    assert used.keys() == state.initial.keys() == state.final_own_adapter("hr/a").keys()


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


@pytest.fixture
def gated(plain, monkeypatch):
    """A PEFT model whose layers weigh their adapters v and w by a gate, for each token."""
    plain.base_model.set_adapter(["v", "w"])
    for layer in [module for module in plain.modules() if isinstance(module, LoraLayer)]:
        layer.fedalt_gate = torch.nn.Linear(layer.in_features, 2, bias=False)

        def forward(x, layer=layer):
            own, rest = (layer.lora_B[key](layer.lora_A[key](x)) for key in ("v", "w"))
            shares = torch.softmax(layer.fedalt_gate(x), dim=-1)
            return layer.base_layer(x) + 2.0 * (shares[..., :1] * own + shares[..., 1:] * rest)

        monkeypatch.setattr(layer, "forward", forward)
    return plain


def load_gates(model, state):
    missing = model.load_state_dict(weights_of(state), strict=False)
    assert not missing.unexpected_keys


GATED = PersonalConfig(own="during", fedalt_gate=True)


def with_gates(state):
    """The state, in which each client's own adapter has gates that differ from the others'."""
    own = {
        client_id: {**adapter, **{n: 20 * g for n, g in gates_like(state.initial, seed=k).items()}}
        for k, (client_id, adapter) in enumerate(state.own_adapters.items())
    }
    return replace(state, own_adapters=own)


def mean_of_others(state, client_id):
    first, second = (factors_of(adapter) for c, adapter in state.own_adapters.items() if c != client_id)
    return {name: (first[name] + second[name]) / 2 for name in first}


def test_fedalt_with_a_gate_equals_a_plain_loop_whose_layers_weigh_both_by_their_input(gated, round_state, federation):
    state, clients, tasks = round_state
    state = with_gates(state)
    own = own_tasks(GATED, state, tasks)
    updates = clients.fit_cohort(own)
    for task, update in zip(own, updates, strict=True):
        before = state.own_adapters[task.client_id]
        load(gated, factors_of(before), "v")
        load(gated, mean_of_others(state, task.client_id), "w")
        load_gates(gated, before)
        expected = train(gated, "v", federation[task.client_id].train, task, also=".fedalt_gate.")
        assert_states_close(update.state, dict(sorted(expected.items())), atol=1e-5)
        assert all(not torch.equal(update.state[n], before[n]) for n in weights_of(before))
        (alone,) = clients.fit_cohort([task])
        assert_states_close(update.state, alone.state, atol=1e-5)


def test_a_gated_adapter_has_the_losses_of_its_layers_also_beside_plain_adapters(gated, round_state, federation):
    state, clients, _ = round_state
    state = with_gates(state)
    used, records = own_adapter(GATED, state, "hr/client_1"), federation["hr/client_1"].eval
    plain_adapter = state.departments["hr"]
    columns = clients.target_losses_of([plain_adapter, used, state.initial], ["hr/client_1"], "eval").mean(axis=0)
    load(gated, factors_of(state.own_adapters["hr/client_1"]), "v")
    load(gated, mean_of_others(state, "hr/client_1"), "w")
    load_gates(gated, state.own_adapters["hr/client_1"])
    with torch.no_grad():
        expected = float(loss_of(gated, records))
    metrics = clients.evaluate([(used, "hr/client_1"), (plain_adapter, "hr/client_1")])
    assert metrics[0].loss_sum / metrics[0].num_tokens == pytest.approx(expected, rel=1e-5)
    alone = clients.evaluate([(plain_adapter, "hr/client_1")])[0]
    assert metrics[1].loss_sum == pytest.approx(alone.loss_sum, rel=1e-6)
    assert columns[1] == pytest.approx(expected, rel=1e-5)
    assert columns[0] == pytest.approx(alone.loss_sum / alone.num_tokens, rel=1e-5)
    with clients.with_adapter(used) as model, torch.no_grad():
        assert float(loss_of(model, records)) == pytest.approx(expected, rel=1e-5)


def test_gates_start_from_a_seed_of_their_client_and_are_not_part_of_what_others_see(round_state):
    state, _, tasks = round_state
    first, second, _ = (task.start for task in own_tasks(GATED, replace(state, own_adapters={}), tasks))
    names = list(weights_of(first))
    assert len(names) == len(factors_of(first)) // 2
    for name in names:
        assert first[name].shape[0] == 2
        assert 0 < float(first[name].abs().max()) <= first[name].shape[1] ** -0.5
        assert not torch.equal(first[name], second[name])
    again = own_tasks(GATED, replace(state, own_adapters={}), tasks)[0].start
    assert all(torch.equal(first[name], again[name]) for name in names)
    for task in own_tasks(GATED, with_gates(state), tasks):
        assert task.frozen_product.keys() == state.initial.keys()
        assert task.relative_scaling == 1.0
    untrained = own_adapter(GATED, replace(state, own_adapters={}), "hr/client_1")
    assert not any(gate.any() for gate in weights_of(untrained).values())


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
