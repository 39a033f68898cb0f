"""DP-FedAvg in rounds: what is released, what it costs, what a resumed run goes on with."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fl_lightning import ClusterMonitor, RoundCheckpoint
from fl_lightning.config import GuardConfig, PrivacyConfig
from fl_lightning.federation.checkpoint import load_checkpoint
from fl_lightning.privacy import epsilon, mechanism, noisy_mean
from fl_lightning.privacy.audit.one_run import epsilon_lower_bound, guess_coins, provable_epsilon
from fl_lightning.privacy.ledger import Ledger

pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")

A, B = "w.lora_A.weight", "w.lora_B.weight"


@pytest.fixture
def private(plain_config):
    def make(rounds=1, share="all", momentum=1.0, **numbers):
        changes = {"guard": GuardConfig(name="dp"), "weighting": "uniform"}
        privacy = PrivacyConfig(**{"noise_seed": 7, **numbers})
        return dataclasses.replace(
            plain_config(rounds=rounds, share=share, momentum=momentum), privacy=privacy, **changes
        )

    return make


def round_of(state, count=4):
    return {f"hr/c{i}": (state((1 + 3.0 * i, 0), (1, 0, 0)), 1 + i) for i in range(count)}


def test_a_department_gets_the_clipped_mean_with_the_noise_of_its_key(play, private, state):
    trainer = play([round_of(state)], private(clip=2.0, noise_multiplier=0.5))
    start, sent = state(), round_of(state)
    residuals = {c: {n: s[n].double() - start[n].double() for n in start} for c, (s, _) in sent.items()}
    wanted = noisy_mean(residuals, clip=2.0, noise_multiplier=0.5, asked=4, seed=Ledger("seed 7", {}).key_of(1, "hr"))
    got = trainer.federation.departments["hr"]
    for name, tensor in wanted.mean.items():
        torch.testing.assert_close(got[name], (start[name] + tensor).float())
    report = trainer.report.departments["hr"]
    assert report.weights == dict.fromkeys(["c0", "c1", "c2", "c3"], 0.25)  # and not by their records
    assert report.scaled == {c.split("/")[1]: s for c, s in wanted.clipped.items()}
    assert (report.aggregation_error, report.clip) == (None, 2.0)


def test_epsilon_grows_by_round_and_is_logged_and_written(play, private, state):
    trainer = play([round_of(state)] * 3, private(3, noise_multiplier=2.0), callbacks=[ClusterMonitor()])
    rows = dict(trainer.rows())
    for round_num in (1, 2, 3):
        assert rows[round_num]["hr/epsilon"] == pytest.approx(epsilon(2.0, round_num, 1e-5, clients=4, asked=4))
        assert rows[round_num]["hr/clip"] == 1.0
    assert trainer.federation.privacy.rounds == dict.fromkeys([f"hr/c{i}" for i in range(4)], 3)


def test_a_client_that_does_not_answer_counts_as_no_move_and_as_asked(play, private, state):
    broken = {**round_of(state, 3), "hr/c3": (state((math.nan, 0)), 1)}
    some, all_four = (play([sent], private(noise_multiplier=1e-9)) for sent in (broken, round_of(state)))
    asked = {f"hr/c{i}": 1 for i in range(4)}
    assert some.federation.privacy.rounds == all_four.federation.privacy.rounds == asked
    start, sent = state(), round_of(state, 3)
    residuals = {c: {n: s[n].double() - start[n].double() for n in start} for c, (s, _) in sent.items()}
    wanted = noisy_mean(residuals, clip=1.0, noise_multiplier=0.0, asked=4, seed="5e" * 32).mean
    torch.testing.assert_close(some.federation.departments["hr"][A], (start[A] + wanted[A]).float(), atol=1e-6, rtol=0)


def test_under_share_a_noise_is_on_a_alone_and_no_b_leaves_its_client(play, private, state):
    trainer = play([round_of(state)], private(share="a", noise_multiplier=3.0))
    got = trainer.federation.departments["hr"]
    assert not torch.equal(got[A], state()[A])
    assert torch.equal(got[B], state()[B])  # the mean of the clients' B is not for others
    for client, (sent, _) in round_of(state).items():
        assert torch.equal(trainer.federation.personal[client][B], sent[B])


def test_the_clip_follows_the_clients_where_it_is_told_to(play, private, state):
    trainer = play(
        [round_of(state)] * 30, private(30, clip=0.01, target_quantile=0.5, noise_multiplier=0.5, clip_rate=0.5)
    )
    assert trainer.report.departments["hr"].clip > 0.02
    assert trainer.federation.privacy.clips["hr"] != trainer.report.departments["hr"].clip


def test_a_resumed_run_goes_on_with_its_key_its_clip_and_its_account(play, private, state, tmp_path):
    script = [round_of(state)] * 4
    for seed in (7, None):  # None: drawn once, kept with the checkpoint
        numbers = {"noise_seed": seed, "target_quantile": 0.5, "noise_multiplier": 0.5}
        folder = tmp_path / str(seed)
        first = play(script[:2], private(2, **numbers), callbacks=[RoundCheckpoint(0)], run_folder=folder)
        loaded = load_checkpoint(folder / "checkpoints" / "round_2")[0]
        assert loaded.privacy == first.federation.privacy
        again = [play(script, private(4, **numbers), resume=loaded).federation for _ in range(2)]
        assert all(torch.equal(again[0].departments["hr"][n], again[1].departments["hr"][n]) for n in (A, B))
        if seed is not None:
            whole = play(script, private(4, **numbers)).federation
            assert all(torch.equal(again[0].departments["hr"][n], whole.departments["hr"][n]) for n in (A, B))
            assert again[0].privacy == whole.privacy


def test_noise_without_a_seed_is_another_every_run(play, private, state):
    runs = [play([round_of(state)], private(noise_seed=None)).federation.departments["hr"] for _ in range(2)]
    assert not torch.equal(runs[0][A], runs[1][A])


@pytest.mark.parametrize(
    "spoilt",
    [{"key": 1, "clips": {}, "rounds": {}}, {"key": "k", "clips": {"hr": -1.0}, "rounds": {}}, [], {"key": "k"}],
)
def test_a_spoilt_account_is_no_whole_checkpoint(play, private, state, tmp_path, spoilt):
    import json

    from fl_lightning import InputError
    from fl_lightning.storage.manifest import write_manifest

    play([round_of(state)], private(), callbacks=[RoundCheckpoint(0)], run_folder=tmp_path)
    folder = tmp_path / "checkpoints" / "round_1"
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**facts, "privacy": spoilt}))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(InputError, match="privacy is missing or of another form"):
        load_checkpoint(folder)


def test_a_department_of_which_nobody_answers_releases_noise_as_ever(play, private, state):
    broken = {f"hr/c{i}": (state((math.nan, 0)), 1) for i in range(2)}
    trainer = play([broken], private(noise_multiplier=1.0))
    assert not torch.equal(trainer.federation.departments["hr"][A], state()[A])
    assert trainer.report.departments["hr"].epsilon == pytest.approx(epsilon(1.0, 1, 1e-5, clients=2, asked=2))
    assert sorted(trainer.report.departments["hr"].rejected) == ["c0", "c1"]


def test_departments_are_mixed_without_a_look_at_their_records(play, private, state):
    from fl_lightning.config import DeptClustersConfig

    def mixed(count):
        script = [{"hr/a": (state((3, 1), (1, 0, 0)), 1), "it/a": (state((3, 2), (1, 0, 0)), count)}]
        one = DeptClustersConfig(min_clusters=1, max_clusters=1, mixing_ratio=0.5)
        return play(script, dataclasses.replace(private(), dept_clusters=one)).federation.departments["hr"]

    assert torch.equal(mixed(1)[A], mixed(500)[A])


def bound_on(play, config, seed, canaries=100, size=2000):
    """ε at least of a round, from canary clients in random directions, each of which answers by a fair coin."""
    generator = np.random.default_rng(seed)
    coins = generator.integers(0, 2, canaries).astype(bool)
    directions = generator.standard_normal((canaries, size), dtype=np.float32)
    directions *= 5 / np.linalg.norm(directions, axis=1, keepdims=True)  # longer than the clip
    start = {A: torch.ones(1, size), B: torch.zeros(3, 1)}
    sent = {
        f"hr/c{i:03d}": ({A: start[A] + torch.from_numpy(directions[i]), B: start[B]}, 1) if coins[i] else None
        for i in range(canaries)
    }
    federation = play([sent], config, initial=start).federation
    scores = directions.astype(float) @ (federation.departments["hr"][A] - start[A]).numpy()[0]
    correct = int((guess_coins(scores, canaries) == np.where(coins, 1, -1)).sum())
    return epsilon_lower_bound(canaries, canaries, correct, 1e-5), federation.privacy.epsilons(2.0, 1e-5)["hr"]


def test_an_audit_of_rounds_never_has_a_bound_above_the_account_and_has_with_too_little_noise(
    play, private, monkeypatch
):
    for seed in range(20):
        bound, account = bound_on(play, private(noise_multiplier=2.0, noise_seed=seed), seed)
        assert bound <= account < provable_epsilon(100, delta=1e-5)  # so it could be above
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda key, name, count: real(key, name, count) / 10)
    for seed in range(3):
        bound, account = bound_on(play, private(noise_multiplier=2.0, noise_seed=seed), seed)
        assert bound > account
