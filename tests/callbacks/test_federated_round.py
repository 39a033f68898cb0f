import gc
import math
from dataclasses import replace

import pytest
import torch

from fl_lightning import ClusterMonitor, FederatedCallback, RunError
from fl_lightning.callbacks import FederatedRound
from fl_lightning.federation.personal_mean import mean_personal
from fl_lightning.federation.state import FederationState
from fl_lightning.storage.offload import OffloadedState

A, B = "w.lora_A.weight", "w.lora_B.weight"


def assert_numbers(tensor, wanted):
    torch.testing.assert_close(tensor.flatten(), torch.tensor(wanted), atol=1e-6, rtol=1e-6)


# 2a. Clients into departments


def test_department_moves_by_momentum_times_the_example_weighted_residual(play, plain_config, state):
    # mean A = (1 (2, 0) + 3 (6, 4)) / 4 = (5, 3), from (1, 0) a tenth of the way; mean B = (0.25, 1.5, 0)
    script = [{"hr/c0": (state((2, 0), (1, 0, 0)), 1), "hr/c1": (state((6, 4), (0, 2, 0)), 3)}]
    department = play(script, plain_config(momentum=0.1)).federation.departments["hr"]
    assert_numbers(department[A], [1.4, 0.3])
    assert_numbers(department[B], [0.025, 0.15, 0.0])


def test_without_residual_the_department_is_the_weighted_mean_whatever_the_momentum(play, plain_config, state):
    script = [{"hr/c0": (state((2, 0)), 1), "hr/c1": (state((6, 4)), 3)}]
    department = play(script, plain_config(momentum=0.1, use_residual=False)).federation.departments["hr"]
    assert_numbers(department[A], [5.0, 3.0])


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_clients_that_always_return_one_state_pull_the_department_there_geometrically(
    play, plain_config, state, momentum
):
    rounds, target = 4, state((4, 4), (3, 0, 0))
    trainer = play([{"hr/c0": (target, 5)}] * rounds, plain_config(rounds=rounds, momentum=momentum))
    department = trainer.federation.departments["hr"]
    left = math.sqrt(sum(float((department[n] - target[n]).square().sum()) for n in target))
    start = math.sqrt(3**2 + 4**2 + 3**2)
    assert left == pytest.approx(start * (1 - momentum) ** rounds, abs=1e-6)


def test_departments_do_not_touch_each_other_without_department_clusters(play, state):
    trainer = play([{"hr/c0": (state((3, 0)), 1), "it/c0": (state((0, 7)), 9)}])
    assert_numbers(trainer.federation.departments["hr"][A], [3.0, 0.0])
    assert_numbers(trainer.federation.departments["it"][A], [0.0, 7.0])
    assert trainer.federation.cluster_assignments == {}
    assert trainer.report.clustering is None


def test_report_holds_weights_norms_drift_and_movement(play, plain_config, state):
    # residuals (3, 4) and (0, 0): mean residual (1.5, 2) at equal weights, half of it is moved: (0.75, 1)
    script = [{"hr/c0": (state((4, 4)), 2), "hr/c1": (state((1, 0)), 2)}]
    report = play(script, plain_config(momentum=0.5)).report.departments["hr"]
    assert report.weights == {"c0": 0.5, "c1": 0.5}
    assert report.residual_norms == {"c0": pytest.approx(5.0), "c1": pytest.approx(0.0)}
    assert report.moved == pytest.approx(1.25)
    assert report.drift == {"c0": pytest.approx(math.hypot(2.25, 3.0)), "c1": pytest.approx(1.25)}


def test_state_after_the_round_is_fp32_and_keeps_no_tensor_of_the_clients(play, state):
    sent = state((2, 0))
    trainer = play([{"hr/c0": (sent, 1)}])
    sent[A].fill_(99.0)
    assert_numbers(trainer.federation.departments["hr"][A], [2.0, 0.0])
    assert {t.dtype for t in trainer.federation.departments["hr"].values()} == {torch.float32}


def test_round_makes_a_new_state_and_leaves_the_one_before_alone(play, state):
    before = FederationState.begin(state(), ["hr"])
    after = play([{"hr/c0": (state((2, 0)), 1)}], resume=before).federation
    assert (before.round_num, after.round_num) == (0, 1)
    assert_numbers(before.departments["hr"][A], [1.0, 0.0])
    assert before.examples == {}
    assert after.examples == {"hr/c0": 1}


def test_every_client_starts_round_one_from_the_shared_initial_state(play, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1), "it/c0": (state((3, 0)), 1)}], initial=state((5, 6)))
    for client_id in ("hr/c0", "it/c0"):
        start = trainer.clients.tasks[1, client_id].start
        assert_numbers(start[A], [5.0, 6.0])
        assert_numbers(start[B], [0.0, 0.0, 0.0])


def test_next_round_starts_from_the_department_state(play, plain_config, state):
    script = [{"hr/c0": (state((2, 0), (1, 1, 1)), 1), "hr/c1": (state((4, 0), (3, 3, 3)), 1)}] * 2
    start = play(script, plain_config(rounds=2)).clients.tasks[2, "hr/c1"].start
    assert_numbers(start[A], [3.0, 0.0])
    assert_numbers(start[B], [2.0, 2.0, 2.0])


# share: a


def test_share_a_gives_each_client_its_own_b_back(play, plain_config, state):
    script = [{"hr/c0": (state((2, 0), (1, 1, 1)), 1), "hr/c1": (state((4, 0), (5, 5, 5)), 3)}] * 2
    tasks = play(script, plain_config(rounds=2, share="a")).clients.tasks
    assert_numbers(tasks[2, "hr/c0"].start[B], [1.0, 1.0, 1.0])
    assert_numbers(tasks[2, "hr/c1"].start[B], [5.0, 5.0, 5.0])
    assert_numbers(tasks[2, "hr/c0"].start[A], [3.5, 0.0])
    assert_numbers(tasks[2, "hr/c1"].start[A], [3.5, 0.0])


def test_share_a_department_carries_the_clients_weighted_mean_b_without_momentum(play, plain_config, state):
    script = [{"hr/c0": (state((2, 0), (1, 1, 1)), 1), "hr/c1": (state((4, 0), (5, 5, 5)), 3)}]
    department = play(script, plain_config(share="a", momentum=0.1)).federation.departments["hr"]
    assert_numbers(department[B], [4.0, 4.0, 4.0])
    assert_numbers(department[A], [1.25, 0.0])


def test_share_a_b_survives_a_round_in_which_the_client_is_absent(play, plain_config, state):
    first = {"hr/c0": (state((2, 0), (1, 1, 1)), 1), "hr/c1": (state((4, 0), (5, 5, 5)), 3)}
    second = {"hr/c0": (state((2, 0), (9, 9, 9)), 1)}
    trainer = play([first, second, second], plain_config(rounds=3, share="a"))
    assert_numbers(trainer.federation.personal["hr/c1"][B], [5.0, 5.0, 5.0])
    assert_numbers(trainer.clients.tasks[3, "hr/c1"].start[B], [5.0, 5.0, 5.0])
    assert_numbers(trainer.clients.tasks[3, "hr/c0"].start[B], [9.0, 9.0, 9.0])
    assert_numbers(trainer.federation.departments["hr"][B], [6.0, 6.0, 6.0])  # (1 · 9 + 3 · 5) / 4


def test_rounds_that_are_given_are_taken_without_early_stopping(play, plain_config, state):
    script = [{"hr/c0": (state((n, 0)), 1), "hr/c1": (state((n, 9)), 1)} for n in (1, 2, 3)]
    rounds = FederatedRound(take_rounds={"hr/c0": 1, "hr/c1": 3})
    federation = play(script, plain_config(rounds=3, share="none"), callbacks=[rounds]).federation
    assert_numbers(federation.final_own_adapter("hr/c0")[A], [1.0, 0.0])
    assert_numbers(federation.final_own_adapter("hr/c1")[A], [3.0, 9.0])


def test_share_a_reads_what_clients_keep_only_of_those_that_are_asked(play, plain_config, state, tmp_path, monkeypatch):
    first = {f"hr/c{k}": (state((2, 0), (k, 1e-6 * k, -1)), 1 + k) for k in range(80)}
    second = {f"hr/c{k}": (state((2, 0), (0.1 * k, 300, 3)), 2) for k in (3, 50, 79)}
    begun = play([first], plain_config(share="a"), run_folder=tmp_path).federation
    reads = []
    read = OffloadedState.in_memory
    monkeypatch.setattr(OffloadedState, "in_memory", lambda state: reads.append(state) or read(state))
    through = play([first, second], plain_config(rounds=2, share="a"), run_folder=tmp_path, resume=begun).federation
    assert len(reads) == 6  # what the three had kept, and what they keep now
    resumed = replace(begun, personal_sums={})  # as from a checkpoint
    again = play([first, second], plain_config(rounds=2, share="a"), run_folder=tmp_path, resume=resumed).federation
    assert again.departments["hr"][B].numpy().tobytes() == through.departments["hr"][B].numpy().tobytes()
    anew = mean_personal(through.personal, through.examples, through.personal)
    assert anew[B].numpy().tobytes() == through.departments["hr"][B].numpy().tobytes()


def test_share_a_keeps_b_out_of_norms_and_movement(play, plain_config, state):
    report = play([{"hr/c0": (state((4, 4), (100, 0, 0)), 2)}], plain_config(share="a")).report.departments["hr"]
    assert report.residual_norms["c0"] == pytest.approx(5.0)
    assert report.moved == pytest.approx(5.0)
    assert report.drift["c0"] == pytest.approx(0.0)


def test_share_all_keeps_nothing_personal(play, state):
    assert play([{"hr/c0": (state((2, 0), (1, 1, 1)), 1)}]).federation.personal == {}


# 2b. Client clusters


def three_clients(state):
    return {
        "hr/c0": (state((0, 0), (0, 0, 0)), 1),
        "hr/c1": (state((2, 0), (4, 0, 0)), 3),
        "hr/c2": (state((20, 0), (0, 0, 0)), 1),
    }


def test_client_starts_from_its_cluster_mean_mixed_with_the_department(play, plain_config, state):
    # department 26/5 = 5.2; clusters {c0, c1} with mean 6/4 = 1.5, {c2} with 20
    config = plain_config(rounds=2, num_clusters=2, global_mix=0.25)
    trainer = play([three_clients(state)] * 2, config)
    assert_numbers(trainer.clients.tasks[2, "hr/c0"].start[A], [0.75 * 1.5 + 0.25 * 5.2, 0.0])
    assert_numbers(trainer.clients.tasks[2, "hr/c1"].start[A], [0.75 * 1.5 + 0.25 * 5.2, 0.0])
    assert_numbers(trainer.clients.tasks[2, "hr/c2"].start[A], [0.75 * 20 + 0.25 * 5.2, 0.0])
    assert_numbers(trainer.clients.tasks[2, "hr/c0"].start[B], [0.75 * 3 + 0.25 * 12 / 5, 0.0, 0.0])
    assert trainer.report.departments["hr"].client_clusters == {"c0": 0, "c1": 0, "c2": 1}


@pytest.mark.parametrize(("global_mix", "start"), [(0.0, 1.5), (1.0, 5.2)])
def test_global_mix_at_its_ends_is_the_cluster_mean_or_the_department(play, plain_config, state, global_mix, start):
    config = plain_config(rounds=2, num_clusters=2, global_mix=global_mix)
    trainer = play([three_clients(state)] * 2, config)
    assert_numbers(trainer.clients.tasks[2, "hr/c0"].start[A], [start, 0.0])


def test_client_start_mixes_in_the_department_after_the_momentum_step(play, plain_config, state):
    config = plain_config(rounds=2, num_clusters=2, global_mix=0.25, momentum=0.5)
    trainer = play([three_clients(state)] * 2, config)
    assert_numbers(trainer.clients.tasks[2, "hr/c2"].start[A], [0.75 * 20 + 0.25 * (1 + 0.5 * 4.2), 0.0])


def test_client_clusters_with_share_a_look_at_a_only_and_leave_b_personal(play, plain_config, state):
    script = [{"hr/c0": (state((0, 0), (50, 0, 0)), 1), "hr/c1": (state((2, 0)), 1), "hr/c2": (state((20, 0)), 1)}] * 2
    trainer = play(script, plain_config(rounds=2, share="a", num_clusters=2, global_mix=0.0))
    assert trainer.report.departments["hr"].client_clusters == {"c0": 0, "c1": 0, "c2": 1}
    start = trainer.clients.tasks[2, "hr/c0"].start
    assert_numbers(start[A], [1.0, 0.0])
    assert_numbers(start[B], [50.0, 0.0, 0.0])


def test_one_client_cluster_turns_client_clusters_off(play, plain_config, state):
    trainer = play([three_clients(state)], plain_config(num_clusters=1))
    assert trainer.federation.client_starts == {}
    assert trainer.report.departments["hr"].client_clusters == {}


def test_more_client_clusters_than_clients_are_clamped_and_logged_once(play, plain_config, state, log_messages):
    script = [{"hr/c0": (state((2, 0)), 1), "it/c0": (state((3, 0)), 1)}] * 3
    trainer = play(script, plain_config(rounds=3, num_clusters=4))
    assert trainer.report.departments["hr"].client_clusters == {"c0": 0}
    assert sum("clamped" in m for m in log_messages) == 1


def test_absent_client_keeps_its_cluster_start(play, plain_config, state):
    second = {"hr/c0": (state((7, 0)), 1), "hr/c1": (state((8, 0)), 1)}
    trainer = play([three_clients(state), second, second], plain_config(rounds=3, num_clusters=2, global_mix=0.0))
    assert_numbers(trainer.clients.tasks[3, "hr/c2"].start[A], [20.0, 0.0])


# 3. and 4. Department clusters and mixing


def four_departments(state):
    # directions of A - A0 from (1, 0): ops and it nearly the same, hr and law each their own
    return {
        "hr/c0": (state((1, 5), (1, 0, 0)), 1),
        "it/c0": (state((5, 0), (2, 0, 0)), 1),
        "law/c0": (state((-3, -1), (3, 0, 0)), 1),
        "ops/c0": (state((9, 0), (4, 0, 0)), 3),
    }


def test_departments_that_move_the_same_way_form_a_cluster(play, plain_config, state):
    trainer = play([four_departments(state)], plain_config(enabled=True))
    assert trainer.federation.cluster_assignments == {"hr": 0, "it": 1, "law": 2, "ops": 1}
    assert trainer.report.clustering.clusters == {0: ["hr"], 1: ["it", "ops"], 2: ["law"]}


def test_mixing_pulls_a_towards_the_example_weighted_cluster_mean_and_leaves_b(play, plain_config, state):
    # cluster {it, ops}: (1 · 5 + 3 · 9) / 4 = 8
    departments = play([four_departments(state)], plain_config(enabled=True, mixing_ratio=0.25)).federation.departments
    assert_numbers(departments["it"][A], [0.75 * 5 + 0.25 * 8, 0.0])
    assert_numbers(departments["ops"][A], [0.75 * 9 + 0.25 * 8, 0.0])
    assert_numbers(departments["hr"][A], [1.0, 5.0])
    assert [float(departments[d][B][0]) for d in ("hr", "it", "law", "ops")] == [1.0, 2.0, 3.0, 4.0]


def test_mix_all_pulls_b_too(play, plain_config, state):
    departments = play(
        [four_departments(state)], plain_config(enabled=True, mixing_ratio=0.25, mix="all")
    ).federation.departments
    assert_numbers(departments["it"][B], [0.75 * 2 + 0.25 * 3.5, 0.0, 0.0])
    assert_numbers(departments["law"][B], [3.0, 0.0, 0.0])


@pytest.mark.parametrize(("mixing_ratio", "a"), [(0.0, 5.0), (1.0, 8.0)])
def test_mixing_ratio_at_its_ends_is_the_department_or_the_cluster(play, plain_config, state, mixing_ratio, a):
    config = plain_config(enabled=True, mixing_ratio=mixing_ratio)
    assert_numbers(play([four_departments(state)], config).federation.departments["it"][A], [a, 0.0])


def test_cluster_mean_weights_count_all_clients_of_a_department(play, plain_config, state):
    script = four_departments(state)
    script["it/c1"] = (state((5, 0), (2, 0, 0)), 2)  # it: 3 examples, ops: 3 examples, cluster mean 7
    trainer = play([script], plain_config(enabled=True, mixing_ratio=1.0))
    assert_numbers(trainer.federation.departments["ops"][A], [7.0, 0.0])


def test_department_that_never_trained_stays_out_of_clusters_and_keeps_its_state(play, plain_config, state):
    script = four_departments(state)
    script["void/c0"] = (state((math.nan, 0)), 8)
    trainer = play([script], plain_config(enabled=True, mixing_ratio=1.0))
    assert_numbers(trainer.federation.departments["void"][A], [1.0, 0.0])
    assert "void" not in trainer.federation.cluster_assignments
    assert_numbers(trainer.federation.departments["it"][A], [8.0, 0.0])


def test_department_that_has_not_moved_stays_finite_and_is_told_in_the_log(play, plain_config, state, log_messages):
    script = four_departments(state)
    script["still/c0"] = (state((1, 0), (7, 0, 0)), 1)
    trainer = play([script], plain_config(enabled=True))
    assert all(torch.isfinite(t).all() for s in trainer.federation.departments.values() for t in s.values())
    assert "still" in trainer.federation.cluster_assignments
    assert any("still" in m for m in log_messages)


def test_one_department_alone_is_one_cluster(play, plain_config, state):
    trainer = play([{"hr/c0": (state((3, 0)), 1)}], plain_config(enabled=True))
    assert trainer.federation.cluster_assignments == {"hr": 0}
    assert_numbers(trainer.federation.departments["hr"][A], [3.0, 0.0])


# Updates that are left out


def poisoned(name, value):
    def make(update):
        update[name][0, 0] = value
        return update

    return make


def with_tensor(name, change):
    return lambda update: {**update, name: change(update[name])}


def cast(dtype):
    return lambda update: {name: tensor.to(dtype) for name, tensor in update.items()}


BROKEN = {
    "nan in A": (poisoned(A, math.nan), "w.lora_A.weight: not finite"),
    "nan in B": (poisoned(B, math.nan), "w.lora_B.weight: not finite"),
    "inf in A": (poisoned(A, math.inf), "w.lora_A.weight: not finite"),
    "inf in B": (poisoned(B, math.inf), "w.lora_B.weight: not finite"),
    "-inf in A": (poisoned(A, -math.inf), "w.lora_A.weight: not finite"),
    "-inf in B": (poisoned(B, -math.inf), "w.lora_B.weight: not finite"),
    "beyond fp32": (with_tensor(A, lambda a: a.double() * 1e39), "not finite (NaN or infinity) in fp32"),
    "A missing": (lambda update: {B: update[B]}, "1 tensors missing, first w.lora_A.weight"),
    "B missing": (lambda update: {A: update[A]}, "1 tensors missing, first w.lora_B.weight"),
    "empty": (lambda update: {}, "2 tensors missing, first w.lora_A.weight"),
    "unknown": (lambda update: {**update, "v.lora_A.weight": torch.zeros(1, 2)}, "unknown tensors, first v.lora_A"),
    "unknown in lines": (lambda update: {**update, "v\n" * 99: torch.zeros(1)}, "unknown tensors, first v\\nv\\n"),
    "unknown number": (lambda update: {**update, 7: torch.zeros(1), "v": torch.zeros(1)}, "2 unknown tensors, first 7"),
    "transposed": (with_tensor(A, lambda a: a.T.contiguous()), "expected shape (1, 2), got (2, 1)"),
    "flattened": (with_tensor(B, torch.flatten), "expected shape (3, 1), got (3,)"),
    "larger": (with_tensor(B, lambda b: torch.zeros(4, 1)), "expected shape (3, 1), got (4, 1)"),
    "broadcasts": (with_tensor(B, lambda b: torch.zeros(1, 1)), "expected shape (3, 1), got (1, 1)"),
    "no elements": (with_tensor(A, lambda a: torch.zeros(1, 0)), "expected shape (1, 2), got (1, 0)"),
    "integer": (cast(torch.int64), "expected floating point of 16 to 64 bits, got torch.int64"),
    "bool": (cast(torch.bool), "expected floating point of 16 to 64 bits, got torch.bool"),
    "complex": (cast(torch.complex64), "expected floating point of 16 to 64 bits, got torch.complex64"),
    "eight bits": (cast(torch.float8_e4m3fn), "expected floating point of 16 to 64 bits, got torch.float8_e4m3fn"),
    "sparse": (with_tensor(A, torch.Tensor.to_sparse), "expected a dense tensor with data, got torch.sparse_coo"),
    "on no device": (
        with_tensor(A, lambda a: a.to("meta")),
        "expected a dense tensor with data, got meta",
    ),
    "list": (with_tensor(A, torch.Tensor.tolist), "expected a dense tensor with data, got list"),
    "none": (with_tensor(A, lambda a: None), "expected a dense tensor with data, got NoneType"),
    "absurd norm": (
        with_tensor(A, lambda a: a * 1e6),
        "at most 1e+03 (federation.max_update_norm), got 2e+06",
    ),
    "absurd norm in B": (
        with_tensor(B, lambda b: b - 1e30),
        "at most 1e+03 (federation.max_update_norm), got 1.73e+30",
    ),
    "norm beyond fp64": (with_tensor(A, lambda a: torch.full_like(a, 3e38)), "federation.max_update_norm"),
}

NO_COUNTS = [
    (0, "an integer from 1 to 1,000,000,000, got 0"),
    (-1, "an integer from 1 to 1,000,000,000, got -1"),
    (10**9 + 1, "an integer from 1 to 1,000,000,000, got 1000000001"),
    (-(10**30), "an integer from 1 to 1,000,000,000, got an integer of 100 bits"),
    (10**400, "an integer from 1 to 1,000,000,000, got an integer of 1329 bits"),
    (
        10**5000,
        "an integer from 1 to 1,000,000,000, got an integer of 16610 bits",
    ),  # which Python refuses to write in decimal
    (1.5, "an integer from 1 to 1,000,000,000, got 1.5"),
    (8.0, "an integer from 1 to 1,000,000,000, got 8.0"),
    (math.nan, "an integer from 1 to 1,000,000,000, got nan"),
    (math.inf, "an integer from 1 to 1,000,000,000, got inf"),
    (True, "an integer from 1 to 1,000,000,000, got True"),
    (None, "an integer from 1 to 1,000,000,000, got None"),
    ("8", "an integer from 1 to 1,000,000,000, got '8'"),
    ("8" * 10**6, "an integer from 1 to 1,000,000,000, got '8888"),
]
HOSTILE = [
    *(pytest.param(change, 3, reason, id=name) for name, (change, reason) in BROKEN.items()),
    *(pytest.param(lambda update: update, count, reason, id=reason[-20:]) for count, reason in NO_COUNTS),
]


def honest_clients(state, round_num=0):
    return {
        "hr/c1": (state((4, 0), (1, 0, round_num)), 1),
        "hr/c2": (state((6, round_num), (0, 1, 0)), 1),
        "it/c0": (state((1, 5), (2, 0, 0)), 4),
        "it/c1": (state((0, 7), (0, 0, 3)), 2),
    }


def assert_same_federation(first, second):
    """Two federation states with the same names, numbers and bits."""
    assert (first.round_num, first.examples) == (second.round_num, second.examples)
    assert first.cluster_assignments == second.cluster_assignments
    for kind in ("departments", "client_starts", "personal"):
        one, other = getattr(first, kind), getattr(second, kind)
        assert one.keys() == other.keys(), kind
        for owner, tensors in one.items():
            assert tensors.keys() == other[owner].keys()
            for name, tensor in tensors.items():
                assert tensor.dtype == other[owner][name].dtype == torch.float32
                assert torch.equal(tensor.view(torch.int32), other[owner][name].view(torch.int32)), (owner, name)


@pytest.mark.parametrize("share", ["all", "a"])
@pytest.mark.parametrize(("change", "count", "reason"), HOSTILE)
def test_invalid_update_is_left_out_and_the_round_is_the_one_without_that_client(
    play, plain_config, state, log_messages, share, change, count, reason
):
    config = plain_config(rounds=2, share=share, momentum=0.3, num_clusters=2, enabled=True)
    wanted = play([honest_clients(state, r) for r in (0, 1)], config)
    script = [{"hr/c0": (change(state((2, 0))), count), **honest_clients(state, r)} for r in (0, 1)]
    trainer = play(script, config, callbacks=[ClusterMonitor()])
    assert_same_federation(trainer.federation, wanted.federation)
    report, without = trainer.report.departments["hr"], wanted.report.departments["hr"]
    assert list(report.rejected) == ["c0"]
    assert reason in report.rejected["c0"]
    assert len(report.rejected["c0"]) < 200
    assert {**vars(report), "rejected": {}} == vars(without)
    assert [row["round/left_out"] for _, row in trainer.history] == [1, 1]
    for round_num in (1, 2):
        lines = [m for m in log_messages if m.startswith(f"WARNING round {round_num}: rejecting the update of hr/c0: ")]
        assert len(lines) == 1
        assert reason in lines[0]


def test_a_left_out_client_has_no_weight(play, state):
    script = [{"hr/c0": (state((math.nan, 0)), 3), "hr/c1": (state((4, 0)), 1), "hr/c2": (state((6, 0)), 1)}]
    trainer = play(script)
    assert_numbers(trainer.federation.departments["hr"][A], [5.0, 0.0])
    assert trainer.report.departments["hr"].weights == {"c1": 0.5, "c2": 0.5}
    assert trainer.federation.examples == {"hr/c1": 1, "hr/c2": 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_updates_of_16_to_64_bits_are_averaged_and_the_state_stays_fp32(play, state, dtype):
    update = cast(dtype)(state((2, 0.5), (1, 2, 4)))  # numbers that every dtype holds exactly
    trainer = play([{"hr/c0": (update, 1), "hr/c1": (state((4, 0.5), (3, 2, 0)), 1)}])
    department = trainer.federation.departments["hr"]
    assert trainer.report.departments["hr"].rejected == {}
    assert {tensor.dtype for tensor in department.values()} == {torch.float32}
    assert_numbers(department[A], [3.0, 0.5])
    assert_numbers(department[B], [2.0, 2.0, 2.0])


@pytest.mark.parametrize("count", [1, 10**9])
def test_the_smallest_and_the_largest_count_are_taken(play, state, count):
    trainer = play([{"hr/c0": (state((2, 0)), count)}])
    assert trainer.report.departments["hr"].rejected == {}
    assert trainer.federation.examples == {"hr/c0": count}


@pytest.mark.parametrize(
    ("a", "b", "taken"),
    [
        ((4, 4), (0, 0, 0), True),  # from (1, 0): a step of (3, 4), of norm 5 = 5 · ‖(1, 0)‖
        ((4, 4.001), (0, 0, 0), False),
        ((1, 0), (-5, 0, 0), True),
        ((1, 0), (-5.001, 0, 0), False),
        ((1, 3), (4, 0, 0), True),  # A and B count together
        ((1, 3.001), (4, 0, 0), False),
    ],
)
def test_an_update_may_move_as_far_as_max_update_norm_and_no_farther(play, plain_config, state, a, b, taken):
    config = plain_config()
    config.max_update_norm = 5.0
    trainer = play([{"hr/c0": (state(a, b), 1), "hr/c1": (state(), 1)}], config)
    assert list(trainer.report.departments["hr"].rejected) == ([] if taken else ["c0"])
    assert list(trainer.federation.examples) == (["hr/c0", "hr/c1"] if taken else ["hr/c1"])


def test_the_limit_grows_with_the_shared_start(play, plain_config, state):
    config = plain_config()
    config.max_update_norm = 5.0
    script = [{"hr/c0": (state((3, 29)), 1), "hr/c1": (state((3, 29.1)), 1)}]
    trainer = play(script, config, initial=state((3, 4)))  # norm 5: a step of 25
    assert list(trainer.report.departments["hr"].rejected) == ["c1"]


def test_a_client_moves_from_its_own_start_however_far_that_is_from_its_department(play, plain_config, state):
    # With weights 1 and 9 the department's B is -3.2: c0, which stays where it is, is 7.2 away from it.
    script = [{"hr/c0": (state((1, 0), (4, 0, 0)), 1), "hr/c1": (state((1, 0), (-4, 0, 0)), 9)}] * 2
    config = plain_config(rounds=2, share="a")
    config.max_update_norm = 5.0
    assert play(script, config).report.departments["hr"].rejected == {}


def test_invalid_update_with_share_a_does_not_replace_the_clients_saved_b(play, plain_config, state):
    first = {"hr/c0": (state((2, 0), (1, 1, 1)), 1), "hr/c1": (state((2, 0)), 1)}
    second = {"hr/c0": (state((math.nan, 0), (8, 8, 8)), 1), "hr/c1": (state((2, 0)), 1)}
    trainer = play([first, second], plain_config(rounds=2, share="a"))
    assert_numbers(trainer.federation.personal["hr/c0"][B], [1.0, 1.0, 1.0])


def test_department_without_a_valid_update_keeps_its_state(play, plain_config, state):
    first = {"hr/c0": (state((2, 0), (1, 0, 0)), 1), "it/c0": (state((3, 0)), 1)}
    second = {"hr/c0": (state((math.nan, 0)), 1), "it/c0": (state((9, 0)), 1)}
    trainer = play([first, second], plain_config(rounds=2))
    assert_numbers(trainer.federation.departments["hr"][A], [2.0, 0.0])
    assert_numbers(trainer.federation.departments["hr"][B], [1.0, 0.0, 0.0])
    assert_numbers(trainer.federation.departments["it"][A], [9.0, 0.0])
    assert trainer.report.departments["hr"].moved == 0.0


def test_no_valid_update_anywhere_raises_and_leaves_the_state_of_the_round_before(play, plain_config, state):
    errors = []
    script = [{"hr/c0": (state((2, 0)), 1)}, {"hr/c0": (state((math.nan, 0)), 1)}]
    trainer = play(script, plain_config(rounds=2), on_error=errors.append)
    assert isinstance(errors[0], RunError)
    assert "round 2" in str(errors[0])
    assert trainer.federation.round_num == 1
    assert_numbers(trainer.federation.departments["hr"][A], [2.0, 0.0])


def test_a_round_in_which_no_client_answers_raises(play, plain_config, state):
    with pytest.raises(RunError, match="expected a department with at least 1 valid updates"):
        play([{"hr/c0": (state((2, 0)), 1)}, {}], plain_config(rounds=2))


# Departments with too few valid updates


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("share", ["all", "a"])
def test_department_with_fewer_valid_updates_than_min_clients_is_as_if_nobody_had_been_asked(
    play, plain_config, state, log_messages, share, clustered
):
    config = plain_config(
        rounds=2, share=share, momentum=0.3, num_clusters=2, enabled=clustered, mixing_ratio=0.9, mix="all"
    )
    config.min_clients = 2
    first = honest_clients(state)
    second = honest_clients(state, round_num=1)
    seen = []

    class Remember(FederatedCallback):
        def on_round_end(self, *, trainer):
            seen.append(trainer.federation)

    few = {**second, "hr/c2": (state((math.nan, 0)), 1)}
    trainer = play([first, few], config, callbacks=[Remember(), ClusterMonitor()])
    before, after = seen
    assert_equal_tensors(after.departments["hr"], before.departments["hr"])
    assert not all(torch.equal(after.departments["it"][n], t) for n, t in before.departments["it"].items())
    assert after.examples == {"hr/c1": 1, "hr/c2": 1, "it/c0": 4, "it/c1": 2}
    for client_id in ("hr/c1", "hr/c2"):
        assert_equal_tensors(after.start_of(client_id), before.start_of(client_id))
    nobody = {client_id: update for client_id, update in second.items() if client_id.startswith("it/")}
    assert_same_federation(after, play([first, nobody], config).federation)
    report = trainer.report.departments["hr"]
    assert report.rejected == {
        "c1": "hr: expected at least 2 valid updates, got 1",
        "c2": "w.lora_A.weight: not finite (NaN or infinity) in fp32",
    }
    assert (report.weights, report.residual_norms, report.drift, report.moved) == ({}, {}, {}, 0.0)
    assert dict(trainer.history)[2]["round/left_out"] == 2
    wanted = "WARNING round 2: hr: expected at least 2 valid updates, got 1 (federation.min_clients); its state is kept"
    assert log_messages.count(wanted) == 1


def assert_equal_tensors(first, second):
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        assert torch.equal(first[name], tensor), name


@pytest.mark.parametrize(("min_clients", "heard"), [(1, ["hr", "it", "law"]), (2, ["hr", "it"]), (3, ["hr"])])
def test_min_clients_counts_the_valid_updates_of_each_department(play, plain_config, state, min_clients, heard):
    script = [{f"{d}/c{i}": (state((2, i)), 1) for d, n in (("hr", 3), ("it", 2), ("law", 1)) for i in range(n)}]
    script[0]["law/c1"] = script[0]["it/c2"] = (state((math.inf, 0)), 1)
    config = plain_config(enabled=True)
    config.min_clients = min_clients
    trainer = play(script, config)
    assert sorted({client_id.split("/")[0] for client_id in trainer.federation.examples}) == heard
    assert sorted(trainer.federation.cluster_assignments) == heard
    for department in {"hr", "it", "law"} - set(heard):
        assert_equal_tensors(trainer.federation.departments[department], state())


def test_a_department_that_was_passed_over_pulls_nobody_in_the_clusters(play, plain_config, state):
    # all three go the same way: in round 1 one cluster, mean (1 · 5 + 3 · 9 + 1 · 6) / 5 = 7.6
    first = {"it/c0": (state((5, 0)), 1), "ops/c0": (state((9, 0)), 3), "law/c0": (state((6, 0)), 1)}
    second = {**first, "ops/c0": (state((math.nan, 0)), 3)}
    trainer = play([first, second], plain_config(rounds=2, enabled=True, mixing_ratio=1.0))
    # in round 2 without ops: (5 + 6) / 2
    assert_numbers(trainer.federation.departments["it"][A], [5.5, 0.0])
    assert_numbers(trainer.federation.departments["law"][A], [5.5, 0.0])
    assert_numbers(trainer.federation.departments["ops"][A], [7.6, 0.0])


@pytest.mark.parametrize("min_clients", [1, 2])
def test_no_department_with_enough_valid_updates_ends_the_run(play, plain_config, state, min_clients):
    errors = []
    good, bad = state((2, 0)), state((math.nan, 0))
    script = [
        {"hr/c0": (good, 1), "hr/c1": (good, 1)},
        {"hr/c0": (bad if min_clients == 1 else good, 1), "hr/c1": (bad, 1)},
    ]
    config = plain_config(rounds=2)
    config.min_clients = min_clients
    trainer = play(script, config, on_error=errors.append)
    assert isinstance(errors[0], RunError)
    assert f"round 2: expected a department with at least {min_clients} valid updates (federation.min_clients)" in str(
        errors[0]
    )
    assert trainer.federation.round_num == 1
    assert_numbers(trainer.federation.departments["hr"][A], [2.0, 0.0])


# Bytes


@pytest.mark.parametrize(("share", "each"), [("all", 20), ("a", 8)])
def test_bytes_of_clients_are_the_fp32_sizes_of_what_is_shared(play, plain_config, state, share, each):
    script = [{f"hr/c{i}": (state((2, i)), 1) for i in range(3)}]
    sent = play(script, plain_config(share=share)).report.bytes_sent
    assert sent["client/up"] == 3 * each
    assert sent["client/down"] == 3 * each
    assert sent["hr/c1"] == each
    assert "department/up" not in sent


@pytest.mark.parametrize(("mix", "each"), [("a", 8), ("all", 20)])
def test_bytes_of_departments_are_the_fp32_sizes_of_what_is_mixed(play, plain_config, state, mix, each):
    sent = play([four_departments(state)], plain_config(enabled=True, mix=mix)).report.bytes_sent
    assert sent["department/up"] == 4 * each
    assert sent["department/down"] == 4 * each


def test_bytes_are_counted_afresh_each_round(play, plain_config, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1)}] * 3, plain_config(rounds=3))
    assert trainer.report.bytes_sent["client/up"] == 20


def test_aggregation_of_the_same_updates_twice_gives_the_same_bits(play, plain_config, state):
    script = [{f"{d}/c{i}": (state((i + 0.1, len(d) / 3)), 1 + i) for d in ("hr", "law") for i in range(4)}] * 3
    config = plain_config(rounds=3, momentum=0.1, num_clusters=2, enabled=True)
    first, second = (play(script, config).federation for _ in range(2))
    for department, wanted in first.departments.items():
        for name, tensor in wanted.items():
            assert torch.equal(second.departments[department][name], tensor)


@pytest.mark.parametrize("share", ["a", "all"])
def test_states_on_disk_give_the_round_that_states_in_memory_give(
    play, plain_config, state, tmp_path, monkeypatch, share
):
    script = [{f"hr/c{k}": (state((k + r, 3 * k), (k, r, 0)), 1 + k) for k in range(4)} for r in range(3)]
    config = plain_config(rounds=3, share=share, momentum=0.5, num_clusters=2)
    memory = play(script, config)
    monkeypatch.setattr("fl_lightning.callbacks.federated_round.MAX_IN_MEMORY", 3)
    disk = play(script, config, run_folder=tmp_path)
    for name in (A, B):
        assert torch.equal(memory.federation.departments["hr"][name], disk.federation.departments["hr"][name])
        for k in range(4):
            start = disk.federation.start_of(f"hr/c{k}")
            assert torch.equal(memory.federation.start_of(f"hr/c{k}")[name], start[name])
    assert vars(memory.report.departments["hr"]) == vars(disk.report.departments["hr"])
    disk.clients.tasks.clear()  # the fake remembers every round's starts
    gc.collect()
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == (4 if share == "a" else 0)  # each client's own B, of the last round alone


def test_clients_of_one_cluster_share_one_start_round_after_round(play, plain_config, state):
    # which a checkpoint then writes once, however many clients there are
    updates = {f"hr/c{i}": (state((9.0 * (i % 2), i % 2)), 1) for i in range(6)}
    starts = play([updates] * 2, plain_config(rounds=2, num_clusters=2)).federation.client_starts
    assert len({id(start) for start in starts.values()}) == 2
