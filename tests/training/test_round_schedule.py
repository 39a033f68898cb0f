"""Buffered rounds of a whole trainer: equal to synchronous ones where nobody is late, and resumed exactly."""

import pytest
import torch
from client_fits import SteadyModule
from lightning.fabric import Fabric

from fl_lightning import ClusterMonitor, FederatedCallback, FederatedTrainer, RoundCheckpoint
from fl_lightning.config import (
    ClientClustersConfig,
    ClientProfilesConfig,
    DeptClustersConfig,
    FederationConfig,
    FloraConfig,
    GuardConfig,
    HierarchyConfig,
    ScheduleConfig,
    ServerConfig,
    TrainingConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import load_checkpoint, newest_checkpoint
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientUpdate, Metrics
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.training.round_schedule import count_steps

CLIENTS = [f"{department}/c{number}" for department in ("hr", "it") for number in range(3)]


@pytest.fixture
def data(make_examples):
    return {
        c: ClientData(*c.split("/"), *(make_examples(n, seed=i, vocabulary=32) for n in (3 + 2 * i, 1)))
        for i, c in enumerate(CLIENTS)
    }


@pytest.fixture
def train(micro_model, data):
    """Run a trainer on a micro model; the departments and rounds are the arguments."""

    def run(*, departments=("hr",), callbacks=(), folder=None, resume=None, journal=False, **federation):
        config = FederationConfig(
            flora=FloraConfig(momentum=0.5), client_clusters=ClientClustersConfig(num_clusters=1),
            **{"dept_clusters": DeptClustersConfig(enabled=False), **federation},
        )  # fmt: skip
        model = create_lora_model(micro_model("qwen", 32), r=2, lora_alpha=4, target_modules=["q_proj"])
        trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1), federation=config, callbacks=callbacks, run_folder=folder,
            training=TrainingConfig(learning_rate=1e-2, batch_size=4, clients_at_once=2), seed=3,
        )  # fmt: skip
        chosen = {c: records for c, records in data.items() if records.department in departments}
        kept = Journal(folder / "checkpoints", trainer.writer) if journal else None
        trainer.fit(SteadyModule(model, learning_rate=1e-2), chosen, resume_from=resume, journal=kept)
        return trainer

    return run


def buffered(buffer=3, speed="constant", **options):
    profiles = {"slow_share": options.pop("slow_share", 0.0), "sigma": options.pop("sigma", 1.0)}
    clients = ClientProfilesConfig(speed=speed, tokens_per_second=10.0, **profiles)
    return ScheduleConfig(mode="buffered", buffer=buffer, clients=clients, **options)


def assert_same_bits(first, second, kinds=("departments", "personal", "past")):
    for kind in kinds:
        states, others = getattr(first, kind), getattr(second, kind)
        assert states.keys() == others.keys()
        for owner, state in states.items():
            assert all(torch.equal(tensor, others[owner][name]) for name, tensor in state.items()), f"{kind} {owner}"


@pytest.mark.parametrize("share", ["all", "a"])
def test_buffers_of_all_clients_give_the_bytes_of_synchronous_rounds(train, share):
    together = train(rounds=3, share=share)
    one_by_one = train(rounds=3, share=share, schedule=buffered(max_staleness=0))
    assert_same_bits(together.federation, one_by_one.federation)
    assert one_by_one.federation.past == {}
    assert together.plan is None
    assert together.report.virtual_hours is None
    assert one_by_one.report.virtual_hours > 0


class Stopping(FederatedCallback):
    """Stops a run after a round's fits, before they are aggregated: the run was killed there."""

    def __init__(self, round_num):
        self.round_num = round_num

    def on_client_end(self, *, trainer, update):
        if trainer.round_num == self.round_num:
            raise KeyboardInterrupt


@pytest.mark.parametrize("share", ["all", "a"])
def test_a_run_killed_with_clients_in_flight_ends_in_the_same_bytes(train, tmp_path, share, log_messages):
    options = {
        "rounds": 7, "share": share, "departments": ("hr", "it"), "dept_clusters": DeptClustersConfig(),
        "schedule": buffered(1, "log_normal", sigma=2.0, concurrency=2, steps_per_clustering=3),
    }  # fmt: skip
    whole = train(folder=tmp_path / "whole", callbacks=[RoundCheckpoint(keep=0), ClusterMonitor()], **options)
    steps = [m for m in log_messages if " steps after " in m]
    assert len(steps) == 7
    assert any("1 of them stale" in step for step in steps)
    wanted = {name: sum(f": {name} steps after " in step for step in steps) for name in ("hr", "it")}
    inputs = whole.federation_config, whole.training, whole.data, whole.federation.initial, whole.seed
    assert count_steps(*inputs) == wanted
    assert [row["round/virtual_hours"] > 0 for _, row in whole.history] == [True] * 7
    assert sum("round/n_clusters" in row for _, row in whole.history) == 2  # after steps 3 and 6
    killed = tmp_path / "killed"
    for number in (3, 5, 6):
        found = newest_checkpoint(killed) if killed.exists() else None
        with pytest.raises(KeyboardInterrupt):
            train(
                folder=killed, resume=found and found[0], journal=True,
                callbacks=[RoundCheckpoint(), Stopping(number)], **options,
            )  # fmt: skip
    state, _ = newest_checkpoint(killed)
    assert state.round_num == 5
    assert state.past  # some clients in flight started rounds ago
    end = train(folder=killed, resume=state, journal=True, callbacks=[RoundCheckpoint()], **options)
    assert_same_bits(whole.federation, end.federation)
    names = ["state.safetensors", "manifest.json", *(["personal/hr/c0.safetensors"] if share == "a" else [])]
    first, second = (folder / "checkpoints/round_7" for folder in (tmp_path / "whole", killed))
    assert (first / names[0]).read_bytes() == (second / names[0]).read_bytes()
    loaded, _ = load_checkpoint(second)
    assert_same_bits(loaded, whole.federation)


class Nudging:
    """Clients that answer at once: each returns its start plus 1."""

    def __init__(self, broken=()):
        self.tasks, self.broken = [], broken

    def fit(self, tasks, on_step=None, journal=None):
        for task in tasks:
            self.tasks.append(task)
            size = float("nan") if task.client_id in self.broken else 1.0
            moved = {name: tensor + size for name, tensor in task.start.items()}
            yield ClientUpdate(task.client_id, task.round_num, moved, 1, 3, [2.0, 1.0])

    def evaluate(self, jobs, split="eval"):
        return [Metrics(1.0, 1.0, 1, 1) for _ in jobs]


def nudge(data, config, clients=None, **arguments):
    from types import SimpleNamespace

    from fl_lightning.federation.state import FederationState

    layers = [f"m.layers.{n}.q" for n in range(2)]
    initial = {f"{n}.lora_A.weight": torch.tensor([[1.0, 0.5]]) for n in layers}
    initial |= {f"{n}.lora_B.weight": torch.zeros(3, 1) for n in layers}
    begin = FederationState.begin(initial, sorted({c.split("/")[0] for c in data}), arguments.pop("groups", ()))
    trainer = FederatedTrainer(fabric=Fabric(accelerator="cpu", devices=1), federation=config, seed=3)
    trainer.fit(SimpleNamespace(model=None), data, clients=clients or Nudging(), resume_from=begin)
    return trainer


PLAIN = {"client_clusters": ClientClustersConfig(num_clusters=1), "dept_clusters": DeptClustersConfig(enabled=False)}
TAKEN = {
    "plain": {},
    "b": {"share": "b"},
    "freeze_a": {"share": "freeze_a"},
    "share_layers": {"share_layers": [0]},
    "fedavg": {"combiner": "fedavg"},
    "mean": {"flora": FloraConfig(use_residual=False)},
    "fedadam": {"server": ServerConfig(step="fedadam", schedule="cosine")},
    "agreement": {"server": ServerConfig(step="fedavgm", schedule="agreement")},
    "guard": {"guard": GuardConfig(name="norm_clip")},
    "median": {"guard": GuardConfig(name="median")},
    "outlier": {"guard": GuardConfig(name="outlier")},
    "krum": {"guard": GuardConfig(name="multi_krum", f=0)},
    "geometric_median": {"guard": GuardConfig(name="geometric_median")},
    "trimmed_mean": {"guard": GuardConfig(name="trimmed_mean")},
    "tokens": {"weighting": "tokens"},
    "uniform": {"weighting": "uniform"},
    "loss_improvement": {"weighting": "loss_improvement"},
    "contribution": {"weighting": "contribution"},
    "clusters": {"dept_clusters": DeptClustersConfig(mix="all")},
    "cross_loss": {"dept_clusters": DeptClustersConfig(representation="cross_loss", smoothing=0.5, patience=2)},
    "groups": {"hierarchy": HierarchyConfig({"both": ["hr", "it"]}), "dept_clusters": DeptClustersConfig()},
    "min_clients": {"min_clients": 3},
}


@pytest.mark.parametrize("choice", TAKEN)
def test_what_is_not_refused_works_with_late_clients(data, choice):
    schedule = buffered(3, "log_normal", concurrency=1, sigma=2.0) if choice != "plain" else buffered(1, sigma=2.0)
    config = FederationConfig(rounds=8, schedule=schedule, **{**PLAIN, **TAKEN[choice]})
    groups = list(config.hierarchy.groups)
    trainer = nudge(data, config, groups=groups)
    assert trainer.federation.round_num == 8
    assert all(torch.isfinite(t).all() for state in trainer.federation.departments.values() for t in state.values())
    assert any(task.started_round is not None for task in trainer.clients.tasks)
    assert all(task.seed_round <= task.round_num for task in trainer.clients.tasks)


def test_a_late_clients_change_is_added_to_the_newest_state(data):
    """One slow client of three; each update is a step of its whole size."""
    config = FederationConfig(rounds=45, flora=FloraConfig(momentum=1.0), schedule=buffered(1, slow_share=0.3), **PLAIN)
    clients = Nudging()
    hr = {c: ClientData(*c.split("/"), [[0] * 100], [[0]]) for c in CLIENTS[:3]}
    trainer = nudge(hr, config, clients)
    ages = [0 if task.started_round is None else task.round_num - task.started_round for task in clients.tasks]
    assert max(ages) > 30
    moved = sum((1 + age) ** -0.5 for age in ages)  # every client moves by 1 from its start
    b = trainer.federation.departments["hr"]["m.layers.1.q.lora_B.weight"]
    torch.testing.assert_close(b, torch.full((3, 1), moved))


def test_a_department_whose_buffer_is_all_invalid_keeps_its_state(data, log_messages):
    config = FederationConfig(rounds=4, schedule=buffered(1), **PLAIN)
    hr = {c: ClientData(*c.split("/"), [[0] * 100], [[0]]) for c in CLIENTS[:3]}
    trainer = nudge(hr, config, Nudging(broken=["hr/c0"]))
    assert trainer.federation.round_num == 4
    assert trainer.federation.departments["hr"]["m.layers.1.q.lora_B.weight"].max() < 4 * 0.1 + 1e-6
    assert any("rejecting the update of hr/c0" in message for message in log_messages)


def test_over_selection_asks_more_and_takes_the_first(data):
    clients = ClientProfilesConfig(speed="constant", tokens_per_second=1.0)
    for over_select, deadline, dropped in ((0.0, None, 0), (0.5, None, 2), (0.0, 1e-3, None)):
        schedule = ScheduleConfig(over_select=over_select, deadline=deadline, clients=clients)
        config = FederationConfig(rounds=1, clients_per_round=2, schedule=schedule, **PLAIN)
        if dropped is None:
            with pytest.raises(Exception, match="expected a department with at least 1 valid updates"):
                nudge(data, config)
            continue
        trainer = nudge(data, config)
        assert len(trainer.report.dropped) == dropped
        assert len(trainer.clients.tasks) == 4
        slowest = [task.client_id for task in trainer.clients.tasks]
        assert over_select == 0 or set(slowest) == {"hr/c0", "hr/c1", "it/c0", "it/c1"}  # they have fewest records


def test_a_state_of_another_schedule_is_refused(data):
    config = FederationConfig(rounds=5, schedule=buffered(1, slow_share=0.3), **PLAIN)
    state = nudge(data, config).federation
    assert state.past
    state.past.clear()
    trainer = FederatedTrainer(fabric=Fabric(accelerator="cpu", devices=1), federation=config, seed=3)
    with pytest.raises(InputError, match=r"federation\.schedule: expected a checkpoint with the state of .* after"):
        trainer.fit(object(), data, clients=Nudging(), resume_from=state)
