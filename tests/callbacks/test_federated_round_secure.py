"""Secure aggregation in rounds: the same departments, and nothing of a single client in what the server keeps."""

import dataclasses
import json

import pytest
import torch

from fl_lightning import ClusterMonitor
from fl_lightning.callbacks.rich_progress import round_table
from fl_lightning.config import MaskingConfig
from fl_lightning.errors import RunError

A, B = "w.lora_A.weight", "w.lora_B.weight"


@pytest.fixture
def secure(plain_config):
    def make(rounds=1, masking=None, **options):
        config = plain_config(rounds=rounds, **options)
        return dataclasses.replace(config, secure_aggregation=True, masking=masking or MaskingConfig())

    return make


def round_of(state, count=4, department="hr"):
    return {f"{department}/c{i}": (state((1 + 0.3 * i, 0), (0.1, i / 8, 0)), 10 + 5 * i) for i in range(count)}


def test_departments_are_those_of_plain_averaging(play, plain_config, secure, state):
    script = [{**round_of(state), **round_of(state, 5, "it")}] * 2
    plain, masked = play(script, plain_config(rounds=2, mix="all")), play(script, secure(2, mix="all"))
    for name, wanted in plain.federation.departments.items():
        for key, tensor in wanted.items():
            torch.testing.assert_close(masked.federation.departments[name][key], tensor, rtol=0, atol=1e-6)
    assert masked.federation.department_examples() == plain.federation.department_examples()


def test_nothing_of_a_single_client_is_reported_or_kept(play, secure, state, tmp_path):
    callbacks = [ClusterMonitor()]
    trainer = play([round_of(state)], secure(), callbacks=callbacks, run_folder=tmp_path)
    report = trainer.report.departments["hr"]
    assert (report.weights, report.residual_norms, report.drift, report.scaled) == ({}, {}, {}, {})
    assert report.summed == 4
    assert 0 < report.quantization_error < 1e-6
    assert trainer.federation.examples == {"hr/c0": 18, "hr/c1": 18, "hr/c2": 17, "hr/c3": 17}  # 10 + 15 + 20 + 25
    aggregation = json.loads((tmp_path / "cluster_metadata" / "round_1_aggregation.json").read_text())
    assert aggregation["departments"]["hr"]["summed"] == 4
    assert dict(trainer.rows())[1]["hr/quantization_error"] == report.quantization_error


def test_all_that_the_server_decides_is_equal_for_other_updates_of_the_same_sum(play, secure, state):
    ones = {f"hr/c{i}": (state((1.0 + x, 0), (y, 0, 0)), 10) for i, (x, y) in enumerate([(0, 0)] * 4)}
    others = {
        f"hr/c{i}": (state((1.0 + x, 0), (y, 0, 0)), weight)
        for i, (x, y, weight) in enumerate([(0.5, -1, 10), (-0.5, 1, 10), (0.25, 2, 10), (-0.25, -2, 10)])
    }
    first, second = play([ones], secure()), play([others], secure())
    for key, tensor in first.federation.departments["hr"].items():
        assert torch.equal(second.federation.departments["hr"][key], tensor)
    assert first.federation.examples == second.federation.examples
    assert first.report.bytes_sent == second.report.bytes_sent
    assert dataclasses.replace(first.report.departments["hr"]) == second.report.departments["hr"]


def test_bytes_are_those_of_the_protocol(play, plain_config, secure, state):
    plain, masked = play([round_of(state)], plain_config()), play([round_of(state)], secure())
    more = masked.report.bytes_sent["client/up"] - plain.report.bytes_sent["client/up"]
    # Keys and signature; shares for three, and a digest; the weight; a signature; shares of four; and the names.
    assert more == 4 * (128 + 3 * (12 + 64 + 16 + 5) + 32 + 4 + 64 + 4 * (32 + 5))
    assert list(round_table(masked, {}, 0.0).columns[4].cells) == [f"{(4 * 20 + more) / 1024:.1f}"]
    assert masked.report.bytes_sent["hr/c0"] == masked.report.bytes_sent["client/up"] / 4


def test_a_client_whose_update_does_not_fit_takes_no_part(play, secure, state, caplog):
    sent = {**round_of(state), "hr/c3": (state((9.0, 0)), 10)}
    trainer = play([sent], secure())
    assert "federation.masking.bound), got 8" in trainer.report.departments["hr"].rejected["c3"]
    assert trainer.report.departments["hr"].summed == 3
    assert "rejecting the update of hr/c3" in caplog.text


def test_below_the_threshold_a_department_keeps_its_state(play, secure, state, caplog):
    broken = {c: (state((float("nan"), 0)), 1) if c in ("hr/c1", "hr/c2") else u for c, u in round_of(state).items()}
    trainer = play([{**broken, **round_of(state, 3, "it")}], secure())
    assert torch.equal(trainer.federation.departments["hr"][A], state()[A])
    assert not torch.equal(trainer.federation.departments["it"][A], state()[A])
    assert set(trainer.report.departments["hr"].rejected) == {"c0", "c1", "c2", "c3"}
    assert trainer.report.departments["hr"].summed is None
    assert "hr: expected at least 3 valid updates, got 2 (federation.masking); its state is kept" in caplog.text
    with pytest.raises(RunError, match="expected a department with at least"):
        play([broken], secure())
