"""Noise in shares, in rounds: what a department gets, who takes part, what it costs, how a resumed run goes on."""

import dataclasses
import math

import pytest
import torch

from fl_lightning import ClusterMonitor, RoundCheckpoint
from fl_lightning.config import GuardConfig, MaskingConfig, PrivacyConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.checkpoint import load_checkpoint
from fl_lightning.privacy import epsilon_of_shares

pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")

A, B = "w.lora_A.weight", "w.lora_B.weight"
LITTLE = 1e-6
"""Noise that does not show in fp32, and is still of some units of the ring."""


@pytest.fixture
def private(plain_config):
    def make(rounds=1, **numbers):
        return dataclasses.replace(
            plain_config(rounds=rounds),
            guard=GuardConfig("dp"),
            weighting="uniform",
            secure_aggregation=True,
            privacy=PrivacyConfig(**{"noise_seed": 7, **numbers}),
            masking=MaskingConfig(bound=0.5),
        )

    return make


def round_of(state, count=4, department="hr"):
    return {f"{department}/c{i}": (state((1 + 3.0 * i, 0), (1, 0, 0)), 1 + i) for i in range(count)}


def clipped_mean(state, sent, clip=1.0):
    start = state()
    changes = [torch.cat([(s[n] - start[n]).double().flatten() for n in (A, B)]) for s, _ in sent.values()]
    return sum(c * min(1.0, clip / max(c.norm().item(), 1e-9)) for c in changes) / len(changes)


def moved(trainer, state, department="hr"):
    after, start = trainer.federation.departments[department], state()
    return torch.cat([(after[n] - start[n]).double().flatten() for n in (A, B)])


def test_with_hardly_any_noise_a_department_gets_the_mean_of_clipped_updates(play, private, state):
    sent = round_of(state)
    trainer = play([sent], private(noise_multiplier=LITTLE, clip=2.0))
    torch.testing.assert_close(moved(trainer, state), clipped_mean(state, sent, 2.0), rtol=0, atol=1e-5)
    report = trainer.report.departments["hr"]
    assert (report.weights, report.scaled, report.residual_norms, report.rejected) == ({}, {}, {}, {})
    assert (report.summed, report.clip) == (4, 2.0)
    assert trainer.federation.examples == dict.fromkeys(sent, 1)


def test_noise_is_that_of_the_key_and_without_a_seed_another_every_run(play, private, state):
    def noise(**numbers):
        return moved(play([round_of(state)], private(**numbers)), state)

    assert torch.equal(noise(), noise())
    assert not torch.equal(noise(), noise(noise_seed=8))
    assert not torch.equal(noise(noise_seed=None), noise(noise_seed=None))
    assert (noise() - clipped_mean(state, round_of(state))).abs().max() > 0.01


def test_epsilon_is_that_of_shares_by_round_and_is_logged(play, private, state):
    trainer = play([round_of(state)] * 3, private(3, noise_multiplier=2.0), callbacks=[ClusterMonitor()])
    for round_num in (1, 2, 3):
        row = dict(trainer.rows())[round_num]
        assert row["hr/epsilon"] == pytest.approx(epsilon_of_shares(2.0, round_num, 1e-5))
    assert trainer.federation.privacy.rounds == dict.fromkeys([f"hr/c{i}" for i in range(4)], 3)


def test_a_client_whose_update_is_none_takes_part_with_its_noise(play, private, state, caplog):
    """Otherwise the server, which sees who takes part, would learn that its training has failed."""
    sent = round_of(state)
    broken = {**sent, "hr/c3": (state((math.nan, 0)), 10**12)}
    trainer = play([broken], private(noise_multiplier=LITTLE))
    unchanged = {**sent, "hr/c3": (state(), 1)}
    torch.testing.assert_close(moved(trainer, state), clipped_mean(state, unchanged), rtol=0, atol=1e-5)
    assert (trainer.report.departments["hr"].summed, trainer.report.departments["hr"].rejected) == (4, {})
    assert "rejecting the update of hr/c3" in caplog.text


def test_who_does_not_answer_drops_out_and_a_department_with_too_few_releases_nothing(play, private, state):
    clients = [*round_of(state), *round_of(state, department="it")]
    script = [{**{c: u for c, u in round_of(state).items() if c != "hr/c1"}, "it/c0": (state(), 1)}]
    script[0].update(dict.fromkeys(set(clients) - set(script[0])))
    trainer = play(script, private(noise_multiplier=LITTLE))
    sent = {c: u for c, u in round_of(state).items() if c != "hr/c1"}
    torch.testing.assert_close(moved(trainer, state), clipped_mean(state, sent), rtol=0, atol=1e-5)
    assert trainer.report.departments["hr"].summed == 3
    assert not moved(trainer, state, "it").any()
    assert trainer.federation.privacy.rounds == dict.fromkeys([f"hr/c{i}" for i in range(4)], 1)
    assert trainer.report.departments["it"].epsilon is None
    with pytest.raises(RunError, match="expected a department with at least"):
        play([{**dict.fromkeys(round_of(state)), "hr/c0": (state(), 1)}], private())


def test_a_resumed_run_goes_on_with_its_key_and_its_account(play, private, state, tmp_path):
    script = [round_of(state)] * 4
    for seed in (7, None):
        folder = tmp_path / str(seed)
        first = play(script[:2], private(2, noise_seed=seed), callbacks=[RoundCheckpoint(0)], run_folder=folder)
        loaded = load_checkpoint(folder / "checkpoints" / "round_2")[0]
        assert loaded.privacy == first.federation.privacy
        again = [play(script, private(4, noise_seed=seed), resume=loaded).federation for _ in range(2)]
        assert all(torch.equal(again[0].departments["hr"][n], again[1].departments["hr"][n]) for n in (A, B))
        if seed is not None:
            whole = play(script, private(4, noise_seed=seed)).federation
            assert all(torch.equal(again[0].departments["hr"][n], whole.departments["hr"][n]) for n in (A, B))
            assert again[0].privacy == whole.privacy
