import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from transformers import Qwen2Config, Qwen2ForCausalLM

from fl_lightning import (
    FederatedCallback,
    FederatedRound,
    FederatedTrainer,
    LoraClientModule,
    RoundCheckpoint,
    create_lora_model,
)
from fl_lightning.callbacks.round_checkpoint import restore_callbacks
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FederationConfig, FloraConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.checkpoint import load_checkpoint
from fl_lightning.federation.protocol import ClientUpdate, Metrics
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.training.local_clients import LocalClients

CLIENTS = ("hr/c0", "hr/c1", "it/c0")


class NudgingClients:
    """Clients somewhere else: each returns its start plus a number of its own."""

    def __init__(self):
        self.rounds = []

    def fit(self, tasks, on_step=None, journal=None):
        self.rounds.append([task.client_id for task in tasks])
        for task in tasks:
            on_step([task.client_id], 1.0, 3)
            moved = {name: tensor + 1 + CLIENTS.index(task.client_id) for name, tensor in task.start.items()}
            yield ClientUpdate(task.client_id, task.round_num, moved, 1, 3, [1.0])

    def evaluate(self, jobs, split="eval"):
        return [Metrics(1.0, 1.0, 1, 1) for _ in jobs]


def make_module(seed=0, rate=1e-2):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_hidden_layers=1, **sizes)).eval()
    return LoraClientModule(create_lora_model(base, 2, 4, 0.1, ["q_proj", "v_proj"], seed=7), learning_rate=rate)


@pytest.fixture
def data():
    example = [Example(torch.tensor([1, 2 + i, 3, 4 + i, 5]), torch.arange(5) >= 2) for i in range(4)]
    return {c: ClientData(*c.split("/"), train=example[: 2 + i], eval=example[:1]) for i, c in enumerate(CLIENTS)}


def make_trainer(rounds=2, momentum=1.0, callbacks=(), clustered=False, **arguments):
    federation = FederationConfig(
        rounds=rounds,
        flora=FloraConfig(momentum=momentum),
        client_clusters=ClientClustersConfig(num_clusters=2 if clustered else 1),
        dept_clusters=DeptClustersConfig(enabled=clustered),
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    return FederatedTrainer(fabric=fabric, federation=federation, callbacks=callbacks, **arguments)


def assert_same_bits(first, second):
    assert first.departments.keys() == second.departments.keys()
    for department, state in first.departments.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, second.departments[department][name]), f"{department} {name}"


def differs(first, second):
    return any(not torch.equal(t, second.departments[d][n]) for d, s in first.departments.items() for n, t in s.items())


def test_two_federated_rounds_are_refused():
    with pytest.raises(ValueError, match="expected at most one FederatedRound.*got 2"):
        make_trainer(callbacks=[FederatedRound(), FederatedRound()])


def test_a_subclass_of_federated_round_counts_as_one():
    class Mine(FederatedRound):
        pass

    with pytest.raises(ValueError, match="FederatedRound"):
        make_trainer(callbacks=[FederatedRound(), Mine()])
    mine = Mine()
    assert [c for c in make_trainer(callbacks=[mine]).callbacks if isinstance(c, FederatedRound)] == [mine]


def test_federated_round_is_added_in_front_where_there_is_none():
    callbacks = make_trainer(callbacks=[FederatedCallback()]).callbacks
    assert [type(c) for c in callbacks] == [FederatedRound, FederatedCallback]


def test_trainer_and_its_federated_round_have_one_config_and_one_seed():
    config = FederationConfig(rounds=3)
    for given, of_round in ((config, None), (None, config), (config, FederationConfig(rounds=3))):
        trainer = FederatedTrainer(federation=given, callbacks=[FederatedRound(of_round)])
        assert trainer.federation_config == config
    for given, of_round, seed in ((7, None, 7), (None, 7, 7), (7, 7, 7), (None, 0, 0), (None, None, 1234)):
        assert FederatedTrainer(seed=given, callbacks=[FederatedRound(seed=of_round)]).seed == seed
    with pytest.raises(ValueError, match="federation: expected one for FederatedTrainer and its FederatedRound"):
        FederatedTrainer(federation=config, callbacks=[FederatedRound(FederationConfig(rounds=4))])
    with pytest.raises(ValueError, match="seed: expected one for FederatedTrainer and its FederatedRound"):
        FederatedTrainer(seed=1234, callbacks=[FederatedRound(seed=0)])


def test_the_config_of_a_federated_round_is_that_of_the_run(data):
    config = FederationConfig(rounds=1, flora=FloraConfig(momentum=0.5), client_clusters=ClientClustersConfig(1))
    config.dept_clusters.enabled = False
    by_round = FederatedTrainer(callbacks=[FederatedRound(config, seed=3)])
    by_trainer = FederatedTrainer(federation=config, seed=3)
    states = [t.fit(make_module(), data, clients=NudgingClients()) for t in (by_round, by_trainer)]
    assert_same_bits(*states)
    assert by_round.round_num == 1
    assert by_round.seed == 3


class Counter(FederatedCallback):
    def state_dict(self):
        return {"n": 1}


class Diary(FederatedCallback):
    def round_record(self, round_num):
        return round_num


@pytest.mark.parametrize("cls", [Counter, Diary])
def test_two_callbacks_whose_state_has_one_key_are_refused(cls):
    class Other(cls):
        state_key = "other"

    with pytest.raises(ValueError, match=f"callbacks: expected one state_key .* got '{cls.__name__}' twice"):
        make_trainer(callbacks=[cls(), cls()])
    with pytest.raises(ValueError, match="got 'other' twice"):
        make_trainer(callbacks=[Other(), cls(), Other()])
    make_trainer(callbacks=[cls(), Other(), FederatedCallback(), FederatedCallback()])


def test_two_callbacks_of_one_class_keep_their_own_state(data, tmp_path):
    class Numbered(FederatedCallback):
        def __init__(self, number):
            self.number = number

        @property
        def state_key(self):
            return f"Numbered {self.number}"

        def state_dict(self):
            return {"number": self.number}

        def load_state_dict(self, state):
            self.number += state["number"]

        def round_record(self, round_num):
            return self.number

    callbacks = [Numbered(1), Numbered(2), RoundCheckpoint()]
    make_trainer(rounds=1, callbacks=callbacks, run_folder=tmp_path).fit(make_module(), data, clients=NudgingClients())
    _, extra = load_checkpoint(tmp_path / "checkpoints" / "round_1")
    assert extra.callbacks == {"Numbered 1": {"number": 1}, "Numbered 2": {"number": 2}}
    assert extra.records == {"Numbered 1": {0: 1, 1: 1}, "Numbered 2": {0: 2, 1: 2}}
    restore_callbacks(callbacks, extra)
    assert [callback.number for callback in callbacks[:2]] == [2, 4]


class Failing(FederatedCallback):
    """Fails in the hooks named, with the hook and its name."""

    def __init__(self, name, *hooks):
        for hook in hooks:
            setattr(self, hook, partial(self._fail, f"{name} {hook}"))

    def _fail(self, message, **_):
        raise OSError(message)


class Closing(FederatedCallback):
    closed = False

    def on_federation_close(self, *, trainer):
        self.closed = True


@pytest.mark.parametrize("hook", ["on_round_end", None])
def test_an_error_in_a_close_hook_keeps_no_other_from_closing(data, tmp_path, log_messages, hook):
    """Nor the writer's thread, which would keep the process alive."""
    last = Closing()
    hooks = ["on_federation_close", *([hook] if hook else [])]
    callbacks = [Failing("first", *hooks), Failing("second", "on_federation_close"), RoundCheckpoint(), last]
    trainer = make_trainer(callbacks=callbacks, run_folder=tmp_path)
    before = threading.active_count()
    with pytest.raises(OSError, match=f"first {hook or 'on_federation_close'}"):
        trainer.fit(make_module(), data, clients=NudgingClients())
    assert last.closed
    assert threading.active_count() == before
    others = [m for m in log_messages if "another error while closing: OSError: " in m]
    assert len(others) == (2 if hook else 1)


def test_a_failed_write_is_raised_once_and_everything_is_closed(data, tmp_path, monkeypatch, log_messages):
    last = Closing()
    monkeypatch.setattr("fl_lightning.callbacks.round_checkpoint.save_checkpoint", Failing("disk")._fail)
    trainer = make_trainer(callbacks=[RoundCheckpoint(), last], run_folder=tmp_path)
    with pytest.raises(TypeError):
        trainer.fit(make_module(), data, clients=NudgingClients())
    assert last.closed
    assert not [m for m in log_messages if "another error" in m]


def test_federated_round_goes_first_wherever_it_was_given():
    writer = FederatedRound()
    assert make_trainer(callbacks=[FederatedCallback(), writer]).callbacks[0] is writer


def test_clients_may_be_anywhere(data):
    module, clients = make_module(), NudgingClients()
    start = collect_lora_state(module.model)
    state = make_trainer().fit(module, data, clients=clients)
    assert state.round_num == 2
    assert clients.rounds == [list(CLIENTS)] * 2
    for name, tensor in start.items():  # hr moves by (1 + 2) / 2 a round, it by 3
        torch.testing.assert_close(state.departments["hr"][name], tensor + 3.0)
        torch.testing.assert_close(state.departments["it"][name], tensor + 6.0)


def test_initial_state_is_the_modules_adapter(data):
    module = make_module()
    start = collect_lora_state(module.model)
    state = make_trainer(rounds=1).fit(module, data, clients=NudgingClients())
    assert all(torch.equal(t, start[n]) for n, t in state.initial.items())


def test_module_whose_b_is_not_zero_is_refused(data):
    module = make_module()
    with torch.no_grad():
        next(p for n, p in module.model.named_parameters() if "lora_B" in n).fill_(1.0)
    with pytest.raises(ValueError, match="lora_B is not zero"):
        make_trainer().fit(module, data, clients=NudgingClients())


def test_local_clients_train_every_department(data):
    trainer = make_trainer(rounds=1, training=TrainingConfig(learning_rate=1e-2, batch_size=2))
    module = make_module()
    start = collect_lora_state(module.model)
    state = trainer.fit(module, data)
    assert state.examples == {"hr/c0": 2, "hr/c1": 3, "it/c0": 4}
    for department in ("hr", "it"):
        assert any(not torch.equal(t, start[n]) for n, t in state.departments[department].items())


def test_the_training_block_of_the_trainer_is_what_its_clients_do(data, monkeypatch):
    """clients_at_once, learning rate and weight decay: they were ignored."""
    module = make_module(rate=None)
    training = TrainingConfig(clients_at_once=3, learning_rate=0.02, weight_decay=0.1)
    trainer = make_trainer(rounds=1, training=training)
    cohorts, rates = [], []
    fit_cohort = LocalClients.fit_cohort

    def watched(self, tasks, on_step=None):
        cohorts.append([task.client_id for task in tasks])
        (group,) = module.configure_optimizers().param_groups
        rates.append((group["lr"], group["weight_decay"]))
        return fit_cohort(self, tasks, on_step)

    monkeypatch.setattr(LocalClients, "fit_cohort", watched)
    trainer.fit(module, data)
    assert cohorts == [list(CLIENTS)]
    assert rates == [(0.02, 0.1)]


def test_a_rate_of_the_module_and_another_of_the_training_block_are_refused(data):
    trainer = make_trainer(training=TrainingConfig(learning_rate=0.02))
    with pytest.raises(ValueError, match=r"training\.learning_rate: expected 0\.01, .* got 0\.02"):
        trainer.fit(make_module(rate=0.01), data)
    assert make_trainer(rounds=1).fit(make_module(rate=0.01), data).round_num == 1


def test_same_run_twice_gives_the_same_bits(data):
    first, second = (make_trainer(rounds=2, momentum=0.5, clustered=True).fit(make_module(), data) for _ in range(2))
    assert_same_bits(first, second)


def test_global_random_state_does_not_change_a_run(data):
    first = make_trainer().fit(make_module(), data)
    module = make_module()
    torch.manual_seed(31337)
    assert_same_bits(first, make_trainer().fit(module, data))


def test_another_seed_gives_another_run(data):
    first = make_trainer(rounds=1, seed=1).fit(make_module(), data)
    assert differs(first, make_trainer(rounds=1, seed=2).fit(make_module(), data))


def test_a_department_is_the_same_whichever_other_departments_take_part(data):
    alone = make_trainer().fit(make_module(), {c: d for c, d in data.items() if d.department == "it"})
    together = make_trainer().fit(make_module(), data)
    for name, tensor in alone.departments["it"].items():
        torch.testing.assert_close(together.departments["it"][name], tensor, atol=1e-6, rtol=0)


def test_resume_goes_on_after_the_round_of_the_state_and_ends_in_the_same_bits(data):
    whole = make_trainer(rounds=3, clustered=True).fit(make_module(), data)
    first = make_trainer(rounds=1, clustered=True).fit(make_module(), data)
    rounds = []

    class Watch(FederatedCallback):
        def on_round_end(self, *, trainer):
            rounds.append(trainer.round_num)

    rest = make_trainer(rounds=3, clustered=True, callbacks=[Watch()])
    assert_same_bits(whole, rest.fit(make_module(), data, resume_from=first))
    assert rounds == [2, 3]


def test_resume_from_states_of_another_layout_is_refused(data):
    first = make_trainer(rounds=1).fit(make_module(), data, clients=NudgingClients())
    first.departments["hr"].popitem()
    with pytest.raises(ValueError, match="expected the names of state 0"):
        make_trainer().fit(make_module(), data, clients=NudgingClients(), resume_from=first)


class Recorder:
    """A logger that keeps its rows."""

    def __init__(self, trainer):
        self.rows = []
        trainer.fabric._loggers.append(self)

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


def test_figures_of_a_round_go_out_as_one_row_with_its_number_as_step(data):
    class Talk(FederatedCallback):
        def on_client_end(self, *, trainer, update):
            trainer.log({update.client_id: 1.0})

        def on_round_end(self, *, trainer):
            trainer.log({"end": float(trainer.round_num)})

    trainer = make_trainer(callbacks=[Talk()])
    logger = Recorder(trainer)
    trainer.fit(make_module(), data, clients=NudgingClients())
    clients = dict.fromkeys(CLIENTS, 1.0)
    assert logger.rows == [(1, {**clients, "end": 1.0}), (2, {**clients, "end": 2.0})]
    assert trainer.rows() == logger.rows


def test_rows_of_the_run_before_are_logged_again_first(data):
    trainer = make_trainer(rounds=1)
    logger, continued = Recorder(trainer), Recorder(trainer)
    history = [(0, {"eval/loss": 3.0}), (1, {"eval/loss": 2.0})]
    trainer.fit(make_module(), data, clients=NudgingClients(), history=history, continued_loggers=[continued])
    assert logger.rows[:2] == history
    assert continued.rows == logger.rows[1:]


def test_datamodule_is_asked_for_its_federation(data):
    class Module:
        def federation(self):
            return data

    assert make_trainer(rounds=1).fit(make_module(), Module(), clients=NudgingClients()).round_num == 1


def test_only_sampled_clients_are_asked_and_the_others_keep_their_own_b(data):
    clients, seen = NudgingClients(), {}

    class Remember(FederatedCallback):
        def on_round_end(self, *, trainer):
            seen[trainer.round_num] = trainer.federation

    trainer = make_trainer(rounds=6, callbacks=[Remember()])
    trainer.federation_config.share = "a"
    trainer.federation_config.clients_per_round = 1
    trainer.fit(make_module(), data, clients=clients)
    assert [len(asked) for asked in clients.rounds] == [2] * 6  # one of hr's two clients, and it's only one
    assert {asked[0] for asked in clients.rounds} == {"hr/c0", "hr/c1"}
    assert all(asked[1] == "it/c0" for asked in clients.rounds)
    for number in range(2, 7):
        absent = ({"hr/c0", "hr/c1"} - set(clients.rounds[number - 1])).pop()
        before, after = seen[number - 1].personal.get(absent), seen[number].personal.get(absent)
        assert (before is None) == (after is None)
        assert before is None or all(torch.equal(before[name], after[name]) for name in before)


def test_sampling_does_not_depend_on_where_a_run_was_resumed(data):
    whole, again = NudgingClients(), NudgingClients()
    states = {}

    class Remember(FederatedCallback):
        def on_round_end(self, *, trainer):
            states[trainer.round_num] = trainer.federation

    trainer = make_trainer(rounds=4, callbacks=[Remember()])
    trainer.federation_config.clients_per_round = 1
    end = trainer.fit(make_module(), data, clients=whole)
    resumed = make_trainer(rounds=4)
    resumed.federation_config.clients_per_round = 1
    assert_same_bits(resumed.fit(make_module(), data, clients=again, resume_from=states[2]), end)
    assert again.rounds == whole.rounds[2:]


def test_a_write_that_fails_ends_the_run_with_its_error(data, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(rounds=50, callbacks=[RoundCheckpoint()], run_folder=tmp_path)
    monkeypatch.setattr("fl_lightning.callbacks.round_checkpoint.save_checkpoint", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(make_module(), data, clients=NudgingClients())
    assert trainer.round_num < 50


class PushyClients(NudgingClients):
    """Sends more than it was asked for: `extra` makes further updates of each one."""

    def __init__(self, extra, before=False):
        super().__init__()
        self.extra, self.before = extra, before

    def fit(self, tasks, on_step=None, journal=None):
        for update in super().fit(tasks, on_step, journal):
            further = self.extra(update)
            yield from [*further, update] if self.before else [update, *further]


def louder(update):
    return {name: tensor + 1000 for name, tensor in update.state.items()}


UNASKED = {
    "twice": (lambda u: [replace(u, state=louder(u), num_examples=9)], False),
    "many times": (lambda u: [u] * 5, False),
    "of the next round": (lambda u: [replace(u, state=louder(u), round_num=u.round_num + 1)], True),
    "of the round before": (lambda u: [replace(u, state=louder(u), round_num=u.round_num - 1)], True),
    "of no round": (lambda u: [replace(u, state=louder(u), round_num=None)], True),
    "of an unknown client": (lambda u: [replace(u, state=louder(u), client_id=u.client_id + "0")], True),
    "of an unknown department": (lambda u: [replace(u, state=louder(u), client_id="law/c0")], True),
    "of a department": (lambda u: [replace(u, state=louder(u), client_id="hr")], True),
    "of nobody": (lambda u: [replace(u, state={}, client_id="")], True),
}


@pytest.mark.parametrize(("extra", "before"), UNASKED.values(), ids=UNASKED)
def test_updates_that_nobody_asked_for_are_passed_over_with_a_log_line(data, log_messages, extra, before):
    heard = []

    class Listen(FederatedCallback):
        def on_client_end(self, *, trainer, update):
            heard.append((trainer.round_num, update.client_id))

    plain = make_trainer(momentum=0.5, clustered=True).fit(make_module(), data, clients=NudgingClients())
    trainer = make_trainer(momentum=0.5, clustered=True, callbacks=[Listen()])
    state = trainer.fit(make_module(), data, clients=PushyClients(extra, before))
    assert_same_bits(plain, state)
    assert state.examples == plain.examples == dict.fromkeys(CLIENTS, 1)
    assert heard == [(r, c) for r in (1, 2) for c in CLIENTS]
    assert all(not d.rejected for d in trainer.report.departments.values())
    wanted = []
    for client_id in CLIENTS:
        wanted += extra(ClientUpdate(client_id, 2, {}, 1, 1))
    lines = [m for m in log_messages if m.startswith("WARNING round 2: ignoring an update of ")]
    assert lines == [f"WARNING round 2: ignoring an update of {u.client_id!r} that was not asked for" for u in wanted]


def test_an_update_of_a_client_that_was_not_sampled_is_passed_over(data, log_messages):
    class Everybody(NudgingClients):
        def fit(self, tasks, on_step=None, journal=None):
            updates = list(super().fit(tasks, on_step, journal))
            asked = {task.client_id for task in tasks}
            yield from (replace(updates[0], client_id=c) for c in CLIENTS if c not in asked)
            yield from updates

    trainer = make_trainer(rounds=1)
    trainer.federation_config.clients_per_round = 1
    clients = Everybody()
    state = trainer.fit(make_module(), data, clients=clients)
    (absent,) = set(CLIENTS) - set(clients.rounds[0])
    assert sorted(state.examples) == sorted(clients.rounds[0])
    assert f"WARNING round 1: ignoring an update of {absent!r} that was not asked for" in log_messages


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_not_finite_is_named_in_the_log_and_left_out_of_the_row(data, log_messages, value):
    class Talk(FederatedCallback):
        def on_round_end(self, *, trainer):
            trainer.log({"good": 1.0, "bad": value})

    trainer = make_trainer(callbacks=[Talk()])
    trainer.fit(make_module(), data, clients=NudgingClients())
    assert trainer.rows() == [(1, {"good": 1.0}), (2, {"good": 1.0})]
    assert [m for m in log_messages if "bad" in m] == [f"WARNING round {r}: bad is {value}" for r in (1, 2)]
