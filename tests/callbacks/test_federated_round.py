import gc
import math

import pytest
import torch

from fl_lightning import FederatedRound, RunError
from fl_lightning.config import FederationConfig
from fl_lightning.federation import FederationState

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
    assert trainer.report.grouping is None


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
    assert trainer.report.grouping.clusters == {0: ["hr"], 1: ["it", "ops"], 2: ["law"]}


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


def broken(state, how):
    update = state((2, 0))
    if how in ("nan", "inf"):
        update[B][1, 0] = float(how)
    elif how == "shape":
        update[A] = update[A].T.contiguous()
    elif how == "missing":
        del update[B]
    elif how == "unknown":
        update["v.lora_A.weight"] = torch.zeros(1, 2)
    elif how == "integer":
        update[A] = update[A].long()
    return update, 0 if how == "no examples" else 3


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("nan", "not finite"),
        ("inf", "not finite"),
        ("shape", "shape (2, 1), wanted (1, 2)"),
        ("missing", "missing, first w.lora_B.weight"),
        ("unknown", "unknown tensors, first v.lora_A.weight"),
        ("integer", "wanted floating point"),
        ("no examples", "num_examples is 0"),
    ],
)
def test_invalid_update_is_left_out_with_its_reason_and_the_others_go_on(play, state, log_messages, how, reason):
    script = [{"hr/c0": broken(state, how), "hr/c1": (state((4, 0)), 1), "hr/c2": (state((6, 0)), 1)}]
    trainer = play(script)
    report = trainer.report.departments["hr"]
    assert_numbers(trainer.federation.departments["hr"][A], [5.0, 0.0])
    assert list(report.left_out) == ["c0"]
    assert reason in report.left_out["c0"]
    assert report.weights == {"c1": 0.5, "c2": 0.5}
    assert trainer.federation.examples == {"hr/c1": 1, "hr/c2": 1}
    assert any(m.startswith("WARNING") and "hr/c0" in m and reason in m for m in log_messages)


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
    with pytest.raises(RunError, match="no valid update"):
        play([{"hr/c0": (state((2, 0)), 1)}, {}], plain_config(rounds=2))


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


def test_defaults_are_those_of_the_federation_block():
    callback = FederatedRound()
    assert callback.config == FederationConfig()
    assert callback.seed == 1234


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
    monkeypatch.setattr("fl_lightning.callbacks.federated_round.IN_MEMORY", 3)
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
