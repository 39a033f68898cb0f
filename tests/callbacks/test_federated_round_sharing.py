"""Share policies in a round: who sends, who keeps, and from what the next round starts."""

import pytest
import torch

from fl_lightning.config import PersonalConfig

A, B = "w.lora_A.weight", "w.lora_B.weight"


def numbers(state, name):
    return state[name].flatten().tolist()


def two_rounds(state):
    first = {"hr/c0": (state((3, 0), (2, 0, 0)), 1), "hr/c1": (state((5, 2), (6, 0, 0)), 3)}
    return [first, {client_id: (state((7, 1), (1, 1, 1)), 1) for client_id in first}]


def play_share(play, plain_config, state, share):
    return play(two_rounds(state), plain_config(rounds=2, share=share))


@pytest.mark.parametrize(
    ("share", "starts"),
    [
        # mean A = (1 (3, 0) + 3 (5, 2)) / 4 = (4.5, 1.5), mean B = (1 · 2 + 3 · 6) / 4 = 5
        ("all", {"c0": ((4.5, 1.5), 5.0), "c1": ((4.5, 1.5), 5.0)}),
        ("a", {"c0": ((4.5, 1.5), 2.0), "c1": ((4.5, 1.5), 6.0)}),
        ("b", {"c0": ((3.0, 0.0), 5.0), "c1": ((5.0, 2.0), 5.0)}),
        ("none", {"c0": ((3.0, 0.0), 2.0), "c1": ((5.0, 2.0), 6.0)}),
        ("freeze_a", {"c0": ((1.0, 0.0), 5.0), "c1": ((1.0, 0.0), 5.0)}),
        ("alternate", {"c0": ((1.0, 0.0), 5.0), "c1": ((1.0, 0.0), 5.0)}),
    ],
)
def test_second_round_starts_from_what_was_averaged_and_what_was_kept(play, plain_config, state, share, starts):
    tasks = play_share(play, plain_config, state, share).clients.tasks
    for client, (a, b) in starts.items():
        start = tasks[2, f"hr/{client}"].start
        assert numbers(start, A) == list(a)
        assert numbers(start, B) == [b, 0.0, 0.0]


@pytest.mark.parametrize(
    ("share", "trains"),
    [("all", ["all"] * 2), ("a", ["all"] * 2), ("b", ["all"] * 2), ("none", ["all"] * 2), ("freeze_a", ["b", "b"]),
     ("alternate", ["b", "a"])],
)  # fmt: skip
def test_tasks_say_which_factor_is_trained(play, plain_config, state, share, trains):
    tasks = play_share(play, plain_config, state, share).clients.tasks
    assert [tasks[round_num, "hr/c0"].trainable_factor for round_num in (1, 2)] == trains


@pytest.mark.parametrize(
    ("share", "up"),
    # A has 2 numbers of 4 bytes, B 3; two clients
    [("all", [40, 40]), ("a", [16, 16]), ("b", [24, 24]), ("none", [0, 0]), ("freeze_a", [24, 24]),
     ("alternate", [24, 16])],
)  # fmt: skip
def test_bytes_are_those_of_the_factor_that_is_sent(play, plain_config, state, share, up):
    for rounds in (1, 2):
        trainer = play(two_rounds(state)[:rounds], plain_config(rounds=rounds, share=share))
        assert trainer.report.bytes_sent["client/up"] == up[rounds - 1]
        assert trainer.report.bytes_sent["client/down"] == up[rounds - 1]


def test_alternate_moves_one_factor_a_round_and_the_mean_of_the_products_is_exact(play, plain_config, state):
    trainer = play_share(play, plain_config, state, "alternate")
    department = trainer.federation.departments["hr"]
    assert numbers(department, A) == [7.0, 1.0]
    assert numbers(department, B) == [5.0, 0.0, 0.0]
    clients = [trainer.clients.script[0][c] for c in ("hr/c0", "hr/c1")]
    initial = trainer.federation.initial[A]
    products = sum(n * update[B] @ initial for update, n in clients) / 4
    torch.testing.assert_close(department[B] @ initial, products, atol=0, rtol=1e-6)


@pytest.mark.parametrize("share", ["b", "none"])
def test_what_clients_keep_is_in_the_exported_adapter_as_their_weighted_mean(play, plain_config, state, share):
    trainer = play(two_rounds(state)[:1], plain_config(rounds=1, share=share))
    department = trainer.federation.departments["hr"]
    assert numbers(department, A) == [4.5, 1.5]
    assert numbers(department, B) == [5.0, 0.0, 0.0]


def test_a_new_client_starts_from_the_department_where_others_keep_their_own(play, plain_config, state):
    script = [{"hr/c0": (state((3, 0), (2, 0, 0)), 1), "hr/c1": (state((5, 2), (6, 0, 0)), 3)}]
    script.append({"hr/c2": (state((0, 0), (0, 0, 0)), 1)})
    tasks = play(script, plain_config(rounds=2, share="none")).clients.tasks
    assert numbers(tasks[2, "hr/c2"].start, A) == [4.5, 1.5]
    assert numbers(tasks[2, "hr/c0"].start, A) == [3.0, 0.0]


def test_client_clusters_under_alternate_keep_the_start_of_the_factor_that_rests(play, plain_config, state):
    far, near = state((1, 0), (8, 0, 0)), state((1, 0), (0, 8, 0))
    script = [{"hr/c0": (far, 1), "hr/c1": (near, 1)}, {"hr/c0": (far, 1), "hr/c1": (near, 1)}]
    script.append(script[0])
    trainer = play(script, plain_config(rounds=3, share="alternate", num_clusters=2, global_mix=0.0))
    assert numbers(trainer.clients.tasks[3, "hr/c0"].start, B) == [8.0, 0.0, 0.0]
    assert numbers(trainer.clients.tasks[3, "hr/c1"].start, B) == [0.0, 8.0, 0.0]


@pytest.mark.parametrize(("method", "more"), [({}, ([0, 0], [0, 0])), ({"fedalt_weight": 0.5}, ([40, 40], [0, 40]))])
def test_own_adapters_are_sent_under_fedalt_only(play, plain_config, state, method, more):
    """Each is 20 bytes; in the first round no client has another's to start beside."""
    personal = PersonalConfig(own="during", **method)
    for rounds in (1, 2):
        trainer = play(two_rounds(state)[:rounds], plain_config(rounds=rounds), personal=personal)
        sent = [trainer.report.bytes_sent[key] - 40 for key in ("client/up", "client/down")]
        assert sent == [direction[rounds - 1] for direction in more]


def test_of_what_a_client_trains_under_fedalt_with_gates_only_the_factors_are_sent(play, plain_config, state):
    personal = PersonalConfig(own="during", fedalt_gate=True)
    trainer = play(two_rounds(state), plain_config(rounds=2), personal=personal)
    assert [trainer.report.bytes_sent[key] - 40 for key in ("client/up", "client/down")] == [40, 40]
    assert all("w.fedalt_gate.weight" in own for own in trainer.federation.own_adapters.values())
