import math
from typing import get_args

import pytest
import torch

from fl_lightning import flora
from fl_lightning.aggregation.department import Residual, aggregate_department
from fl_lightning.aggregation.robust import GUARDS
from fl_lightning.aggregation.server_optimizers import SERVER_STEPS
from fl_lightning.aggregation.weighting import WEIGHTINGS, ClientStats
from fl_lightning.config import FederationConfig, FloraConfig, GuardConfig, ServerConfig
from fl_lightning.config.federation import GuardName, ServerStepName, WeightingName
from fl_lightning.flora import flora_weighted_aggregate

A, B = "w.lora_A.weight", "w.lora_B.weight"
START = {A: torch.tensor([[1.0, 0.0]]), B: torch.tensor([[0.0]])}


def config(*, momentum=1.0, guard=None, server=None, weighting="examples", residual=True):
    return FederationConfig(
        weighting=weighting,
        flora=FloraConfig(momentum=momentum, use_residual=residual),
        guard=GuardConfig(**(guard or {})),
        server=ServerConfig(**(server or {})),
    )


def update(a, b=0.0):
    return {A: torch.tensor([a]), B: torch.tensor([[b]])}


def play(config, updates, stats=None, *, round_num=1, previous=START, optimizer_state=None):
    stats = stats or {c: ClientStats(1, 10) for c in updates}
    return aggregate_department(config, round_num, previous, updates, stats, optimizer_state or {})


HONEST = {f"hr/c{i}": update([1.0 + 0.1 * i, 1.0], 0.5 + 0.1 * i) for i in range(7)}


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("residual", [True, False])
def test_defaults_are_flora_bit_by_bit(momentum, residual):
    sizes = {c: i + 1 for i, c in enumerate(HONEST)}
    got = play(config(momentum=momentum, residual=residual), HONEST, {c: ClientStats(n, 5) for c, n in sizes.items()})
    wanted = flora_weighted_aggregate(((HONEST[c], n) for c, n in sizes.items()), START, momentum, residual)
    assert all(torch.equal(got.state[name], wanted[name]) for name in wanted)
    assert got.weights == {c: n / 28 for c, n in sizes.items()}
    assert (got.rejected, got.scaled, got.optimizer_state, got.step_size) == ({}, {}, {}, momentum)


@pytest.mark.parametrize(
    ("weighting", "wanted"),
    [
        ("examples", 0.25),  # 1 of 4
        ("tokens", 0.75),  # 30 of 40
        ("uniform", 0.5),
    ],
)
def test_weights_go_by_the_rule_of_the_config(weighting, wanted):
    stats = {"hr/a": ClientStats(1, 30), "hr/b": ClientStats(3, 10)}
    got = play(config(weighting=weighting), {"hr/a": update([5.0, 0.0]), "hr/b": update([1.0, 0.0])}, stats)
    assert got.state[A][0, 0].item() == pytest.approx(1 + 4 * wanted)
    assert got.weights["hr/a"] == wanted


def test_a_client_of_weight_zero_is_left_out_and_named():
    stats = {"hr/a": ClientStats(1, 10, (3.0, 1.0)), "hr/b": ClientStats(9, 10, (1.0, 2.0))}
    got = play(config(weighting="loss_improvement"), {"hr/a": update([5.0, 0.0]), "hr/b": update([-9.0, 0.0])}, stats)
    assert got.state[A].tolist() == [[5.0, 0.0]]
    assert got.rejected == {"hr/b": "weight 0 by loss_improvement"}
    assert got.weights == {"hr/a": 1.0}


@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_works_from_the_config_and_bounds_what_one_of_eight_does(name):
    attacked = {**HONEST, "hr/z": update([-1000.0, -1000.0], -1000.0)}
    clean = play(config(), HONEST).state
    got = play(config(guard={"name": name}), attacked)
    plain = play(config(), attacked).state
    assert (got.state[A] - clean[A]).abs().max() < 1.0
    assert (plain[A] - clean[A]).abs().max() > 100
    if name in ("outlier", "krum", "multi_krum"):
        assert "hr/z" in got.rejected
    if name == "norm_clip":
        assert 0 < got.scaled["hr/z"] < 0.01


def test_krum_with_too_few_clients_says_so():
    with pytest.raises(ValueError, match="5"):
        play(config(guard={"name": "krum", "f": 1}), dict(list(HONEST.items())[:4]))


def test_clipped_updates_are_scaled_about_the_departments_state():
    # residuals (3, 4) of length 5 and (0, 1) of length 1; M = 1: (0.6, 0.8) and (0, 1), mean (0.3, 0.9)
    updates = {"hr/a": update([4.0, 4.0]), "hr/b": update([1.0, 1.0])}
    got = play(config(guard={"name": "norm_clip", "max_norm": 1.0}), updates)
    torch.testing.assert_close(got.state[A], torch.tensor([[1.3, 0.9]]))
    assert got.scaled == {"hr/a": pytest.approx(0.2)}


@pytest.mark.parametrize("step", SERVER_STEPS)
def test_every_step_works_from_the_config_and_its_memory_goes_on(step):
    rounds = config(momentum=0.1, server={"step": step, "tau": 1.0})
    first = play(rounds, HONEST)
    second = play(rounds, HONEST, optimizer_state=first.optimizer_state, previous=first.state)
    fresh = play(rounds, HONEST, previous=first.state)
    assert bool(first.optimizer_state) is (step != "sgd")
    assert torch.equal(second.state[A], fresh.state[A]) is (step == "sgd")


def test_momentum_on_the_server_adds_up():
    # Δ = (4, 0); m = 4, then 0.5 · 4 + Δ'; θ = 1 + 0.25 · 4 = 2, Δ' = 5 − 2 = 3, m = 5, θ = 2 + 0.25 · 5
    rounds = config(momentum=0.25, server={"step": "fedavgm", "beta1": 0.5})
    updates = {"hr/a": update([5.0, 0.0])}
    first = play(rounds, updates)
    assert first.state[A][0, 0].item() == 2.0
    assert first.optimizer_state["m/" + A][0, 0].item() == 4.0
    assert (
        play(rounds, updates, previous=first.state, optimizer_state=first.optimizer_state).state[A][0, 0].item() == 3.25
    )


def test_a_factor_that_is_not_sent_keeps_its_memory_out_of_the_round():
    rounds = config(momentum=0.25, server={"step": "fedavgm", "beta1": 0.5})
    only_b = {"hr/a": {B: torch.tensor([[2.0]])}}
    optimizer_state = {"m/" + A: torch.tensor([[8.0, 8.0]]), "m/" + B: torch.tensor([[2.0]])}
    got = play(rounds, only_b, previous={B: START[B]}, optimizer_state=optimizer_state)
    assert torch.equal(got.optimizer_state["m/" + A], optimizer_state["m/" + A])
    assert got.optimizer_state["m/" + B].item() == 3.0
    assert set(got.state) == {B}


@pytest.mark.parametrize(
    ("server", "sizes"),
    [
        ({"schedule": "linear", "end": 0.0, "schedule_rounds": 4}, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ({"schedule": "cosine", "end": 0.5, "schedule_rounds": 2}, [1.0, 0.75, 0.5, 0.5]),
    ],
)
def test_step_sizes_follow_the_schedule_down_to_standing_still(server, sizes):
    for round_num, size in enumerate(sizes, start=1):
        got = play(config(server=server), {"hr/a": update([5.0, 0.0])}, round_num=round_num)
        assert got.step_size == pytest.approx(size)
        assert got.state[A][0, 0].item() == pytest.approx(1 + 4 * size)


def test_agreement_is_one_in_step_and_less_at_right_angles():
    apart = {"hr/a": update([2.0, 0.0]), "hr/b": update([1.0, 1.0])}
    assert play(config(server={"schedule": "agreement"}), apart).step_size == pytest.approx(1 / math.sqrt(2))
    together = {"hr/a": update([2.0, 0.0]), "hr/b": update([3.0, 0.0])}
    assert play(config(server={"schedule": "agreement"}), together).step_size == 1.0
    against = {"hr/a": update([2.0, 0.0]), "hr/b": update([0.0, 0.0])}
    still = play(config(server={"schedule": "agreement"}), against)
    assert (still.step_size, still.state[A].tolist()) == (0.0, START[A].tolist())


def test_agreement_looks_at_clipped_updates():
    updates = {"hr/a": update([101.0, 0.0]), "hr/b": update([0.0, 0.0])}  # (100, 0) clipped to (1, 0), and (−1, 0)
    got = play(config(guard={"name": "norm_clip", "max_norm": 1.0}, server={"schedule": "agreement"}), updates)
    assert got.step_size == pytest.approx(0.0, abs=1e-12)


def test_residual_reads_a_tensor_only_when_it_is_asked_for():
    read = []

    class Watched(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    residual = Residual(Watched(update([3.0, 0.0], 2.0)), START)
    assert (list(residual), len(residual), read) == ([A, B], 2, [])
    assert residual[A].tolist() == [[2.0, 0.0]]
    assert residual[A].dtype == torch.float64
    assert set(read) == {A}


def test_the_config_names_every_method_there_is():
    assert {"none", "dp", *GUARDS} == set(get_args(GuardName))
    assert list(SERVER_STEPS) == list(get_args(ServerStepName))
    assert list(WEIGHTINGS) == list(get_args(WeightingName))


def spy(monkeypatch):
    calls = []
    real = flora.flora_weighted_aggregate

    def recorded(items, *arguments):
        assert iter(items) is items  # read one at a time
        calls.append(arguments)
        return real(items, *arguments)

    monkeypatch.setattr(flora, "flora_weighted_aggregate", recorded)
    return calls


@pytest.mark.parametrize(("momentum", "residual"), [(0.1, True), (1.0, True), (0.1, False)])
def test_the_default_step_is_the_function_of_flora(monkeypatch, momentum, residual):
    calls = spy(monkeypatch)
    play(config(momentum=momentum, residual=residual), HONEST)
    assert [arguments[1:] for arguments in calls] == [(momentum, residual)]


@pytest.mark.parametrize("changed", [{"guard": {"name": "median"}}, {"server": {"step": "fedadam"}}])
def test_other_guards_and_steps_are_not_computed_by_flora(monkeypatch, changed):
    calls = spy(monkeypatch)
    play(config(**changed), HONEST)
    assert calls == []


@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
def test_the_default_state_has_the_bits_of_the_formula_written_out(momentum):
    draw = torch.Generator().manual_seed(0)
    start = {A: torch.randn(8, 33, generator=draw), B: torch.randn(17, 8, generator=draw)}
    updates = {
        f"hr/c{i}": {n: t + torch.randn(t.shape, generator=draw) / 7 for n, t in start.items()} for i in range(5)
    }
    stats = {c: ClientStats(3 * i + 1, 10) for i, c in enumerate(updates)}
    step = play(config(momentum=momentum), updates, stats, previous=start)
    for name, theta in start.items():
        total = torch.zeros(theta.shape, dtype=torch.float64)
        for c, state in updates.items():
            total.add_(state[name].double(), alpha=float(stats[c].num_examples))
        residual = total / 35.0 - theta.double()  # 1 + 4 + 7 + 10 + 13
        assert torch.equal(step.state[name], (theta.double() + momentum * residual).to(torch.float32))


@pytest.mark.parametrize("guard", [{"name": "norm_clip", "max_norm": 1e9}, None])
def test_sgd_after_a_guard_that_changes_nothing_is_the_default_step(guard):
    sizes = {c: ClientStats(i + 1, 5) for i, c in enumerate(HONEST)}
    step = play(config(momentum=0.3, guard=guard), HONEST, sizes)
    default = play(config(momentum=0.3), HONEST, sizes)
    assert all(torch.allclose(step.state[n], default.state[n], rtol=0, atol=1e-7) for n in default.state)
