import json
import math
from dataclasses import replace

import pytest
import torch

from fl_lightning import ClientLog, ClusterMonitor, Evaluation, FederatedCallback, RoundCheckpoint
from fl_lightning.config import EvaluationConfig
from fl_lightning.federation.checkpoint import load_checkpoint
from fl_lightning.federation.protocol import Metrics

# The fake clients answer a loss of (sum of A) nats a token and an accuracy of one half; client i of the run, in sorted
# order, has i + 1 held-out records of one token each.


@pytest.fixture
def script(state):
    return [{"hr/c0": (state((4, 0)), 1), "hr/c1": (state((8, 0)), 3), "it/c0": (state((2, 0)), 1)}] * 2


def figures(loss):
    return {"loss": pytest.approx(loss), "perplexity": pytest.approx(math.exp(loss)), "token_accuracy": 0.5}


def test_base_is_the_shared_initial_state_and_final_the_department_state(play, script, tmp_path):
    play(script, callbacks=[Evaluation()], run_folder=tmp_path)
    got = json.loads((tmp_path / "federated_eval.json").read_text())
    assert got == {
        "departments": {
            "hr": {"base": figures(1.0), "final": figures(7.0)},
            "it": {"base": figures(1.0), "final": figures(2.0)},
        },
        "mean": {"base": figures(1.0), "final": figures(4.5)},
    }


def test_clients_are_evaluated_on_their_own_records_every_round(play, script, tmp_path):
    play(script, callbacks=[Evaluation()], run_folder=tmp_path)
    got = json.loads((tmp_path / "client_eval_all_rounds.json").read_text())
    one = {
        "hr": {"c0": {**figures(4.0), "num_examples": 1}, "c1": {**figures(8.0), "num_examples": 2}},
        "it": {"c0": {**figures(2.0), "num_examples": 3}},
    }
    assert got == {"rounds": {"1": one, "2": one}}


def test_clients_own_adapters_are_evaluated_with_b_of_their_own(play, script, plain_config, state):
    script = [{"hr/c0": (state((4, 0), (9, 9, 9)), 1)}]
    trainer = play(script, plain_config(share="a"), callbacks=[Evaluation()])
    own = [s for s, _ in trainer.clients.evaluated if s is script[0]["hr/c0"][0]]
    assert len(own) == 1


def test_rows_hold_department_client_and_mean_figures(play, script):
    rows = dict(play(script, callbacks=[Evaluation()]).history)
    assert sorted(rows) == [0, 1, 2]
    assert rows[0]["eval/loss"] == pytest.approx(1.0)
    assert rows[0]["hr/eval/loss"] == pytest.approx(1.0)
    assert rows[1]["eval/loss"] == pytest.approx(4.5)
    assert rows[1]["eval/perplexity"] == pytest.approx(math.exp(4.5))
    assert rows[1]["hr/eval/loss"] == pytest.approx(7.0)
    assert rows[1]["hr/c1/eval/loss"] == pytest.approx(8.0)
    assert rows[1]["hr/c1/eval/token_accuracy"] == 0.5


def test_unweighted_mean_over_clients_is_logged_beside_the_mean_over_departments(play, script):
    rows = dict(play(script, callbacks=[Evaluation()]).history)
    assert rows[1]["eval/loss_client_mean"] == pytest.approx((7.0 + 7.0 + 2.0) / 3)


def test_left_out_update_is_not_evaluated(play, state):
    script = [{"hr/c0": (state((math.nan, 0)), 1), "hr/c1": (state((2, 0)), 1)}]
    callback = Evaluation()
    row = dict(play(script, callbacks=[callback]).history)[1]
    assert list(callback.rounds["1"]["hr"]) == ["c1"]
    assert "hr/c0/eval/loss" not in row


def test_figures_survive_a_resume_and_the_base_is_not_evaluated_again(play, script):
    callback, other = Evaluation(), Evaluation()
    play(script, callbacks=[callback])
    other.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    trainer = play(script, callbacks=[other])
    assert 0 not in dict(trainer.history)
    assert other.base == callback.base


def test_metrics_of_clients_survive_a_resume_by_their_records(play, script):
    callback, other = Evaluation(), Evaluation()
    play(script, callbacks=[callback])
    assert "rounds" not in callback.state_dict()
    records = {int(n): json.loads(json.dumps(callback.round_record(int(n)))) for n in callback.rounds}
    other.load_state_dict(callback.state_dict())
    other.load_round_records(records)
    assert other.rounds == callback.rounds
    assert callback.round_record(99) is None


def test_without_a_run_folder_figures_are_kept_but_not_written(play, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = Evaluation()
    play(script, callbacks=[callback])
    assert callback.final["hr"]["loss"] == pytest.approx(7.0)
    assert list(tmp_path.iterdir()) == []


class Tamper(FederatedCallback):
    """Changes what one client sends: the fields of its updates that are given."""

    def __init__(self, client_id, **fields):
        self.client_id, self.fields = client_id, fields

    def on_federation_start(self, *, trainer):
        fit = trainer.clients.fit

        def tampered(*arguments):
            for update in fit(*arguments):
                yield replace(update, **self.fields) if update.client_id == self.client_id else update

        trainer.clients.fit = tampered


def strict_json(path):
    """The value in a file that every JSON reader takes: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(f"{path}: {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def files_of_a_run(play, script, tamper, tmp_path):
    callbacks = [tamper, ClientLog(), Evaluation(), ClusterMonitor(), RoundCheckpoint()]
    trainer = play(script, callbacks=callbacks, run_folder=tmp_path)
    found = {p.relative_to(tmp_path).as_posix(): strict_json(p) for p in tmp_path.rglob("*.json")}
    assert {"federated_eval.json", "client_eval_all_rounds.json", "checkpoints/round_2/state.json"} <= found.keys()
    assert "cluster_metadata/round_2_aggregation.json" in found
    assert all(math.isfinite(value) for _, row in trainer.history for value in row.values())
    return trainer, found


NAN, INF = math.nan, math.inf
NO_FIGURES = [
    Metrics(NAN, 1.0, 2, 2),
    Metrics(INF, 1.0, 2, 2),
    Metrics(-INF, 1.0, 2, 2),
    Metrics(1.0, NAN, 2, 2),
    Metrics(1.0, INF, 2, 2),
    Metrics(INF, -INF, 2, 2),
    Metrics(1e308, 1.0, 2, 2),  # a finite sum, but no finite mean in fp32
    Metrics(1.0, 10**300, 2, 2),
    Metrics(10**400, 1.0, 2, 2),
    Metrics(1.0, 1.0, 0, 2),
    Metrics(1.0, 1.0, -3, 2),
    Metrics(1.0, 1.0, NAN, 2),
    Metrics(1.0, 1.0, INF, 2),
    Metrics(1.0, 1.0, 10**400, 2),
    Metrics(1.0, 1.0, 2, NAN),
    Metrics(1.0, 1.0, 2, INF),
    Metrics(None, 1.0, 2, 2),
    Metrics("1", 1.0, 2, 2),
    Metrics(1.0, [1.0], 2, 2),
]


def test_a_client_without_held_out_records_has_no_metrics_and_no_log_line(play, script, tmp_path, log_messages):
    trainer, _ = files_of_a_run(play, script, Tamper("hr/c1", metrics=Metrics(0.0, 0.0, 0, 0)), tmp_path)
    assert not [message for message in log_messages if "impossible" in message]
    assert not any("hr/c1/eval" in key for _, row in trainer.history for key in row)


@pytest.mark.parametrize("metrics", NO_FIGURES, ids=lambda m: str(tuple(vars(m).values()))[:30])
def test_what_a_client_sends_as_figures_and_is_none_is_left_out_with_a_log_line(
    play, script, tmp_path, log_messages, metrics
):
    plain = play(script)
    trainer, found = files_of_a_run(play, script, Tamper("hr/c1", metrics=metrics), tmp_path)
    for round_num in (1, 2):
        line = f"WARNING round {round_num}: ignoring impossible metrics of hr/c1: Metrics("
        assert len([m for m in log_messages if m.startswith(line)]) == 1
        row = dict(trainer.history)[round_num]
        assert not [name for name in row if name.startswith("hr/c1/eval/")]
        assert row["hr/c0/eval/loss"] == pytest.approx(4.0)
        assert row["hr/eval/loss"] == pytest.approx(7.0)  # the server looks for itself
        assert row["round/left_out"] == 0
    assert list(found["client_eval_all_rounds.json"]["rounds"]["2"]["hr"]) == ["c0"]
    for department, state in plain.federation.departments.items():
        assert all(torch.equal(trainer.federation.departments[department][n], t) for n, t in state.items())


def test_client_without_figures_goes_on_in_silence(play, script, tmp_path, log_messages):
    _, found = files_of_a_run(play, script, Tamper("hr/c1", metrics=None), tmp_path)
    assert list(found["client_eval_all_rounds.json"]["rounds"]["1"]["hr"]) == ["c0"]
    assert not [m for m in log_messages if m.startswith("WARNING")]


@pytest.mark.parametrize("losses", [[2.0, NAN], [NAN], [INF, 1.0], [INF, -INF], [1e308] * 3])
def test_losses_of_a_client_that_are_not_finite_stay_out_of_rows_and_in_its_csv(
    play, script, tmp_path, log_messages, losses
):
    trainer, found = files_of_a_run(play, script, Tamper("hr/c1", losses=losses), tmp_path)
    for round_num in (1, 2):
        row = dict(trainer.history)[round_num]
        assert "hr/c1/train/loss" not in row
        assert row["hr/c0/train/loss"] == 1.5
        assert row["hr/c1/eval/loss"] == pytest.approx(8.0)
        assert len([m for m in log_messages if m.startswith(f"WARNING round {round_num}: hr/c1/train/loss is ")]) == 1
        lines = (tmp_path / "client_runs" / "hr" / "c1" / f"round_{round_num}.csv").read_text().splitlines()
        assert lines == ["step,train/loss", *(f"{k},{loss:.6g}" for k, loss in enumerate(losses, start=1))]
    rows = dict(load_checkpoint(tmp_path / "checkpoints" / "round_2")[1].history)
    assert "hr/c1/train/loss" not in rows[2]


def test_the_checkpoint_of_a_run_with_bad_figures_can_be_read(play, script, tmp_path):
    tamper = Tamper("hr/c1", metrics=Metrics(NAN, NAN, 2, 2), losses=[NAN])
    trainer, _ = files_of_a_run(play, script, tamper, tmp_path)
    state, extra = load_checkpoint(tmp_path / "checkpoints" / "round_2")
    assert (state.round_num, state.examples) == (2, trainer.federation.examples)
    assert list(extra.records["Evaluation"][1]["hr"]) == ["c0"]


def test_adapters_are_evaluated_every_second_round_and_in_the_last(play, plain_config, state):
    script = [{"hr/c0": (state((n, 0)), 1)} for n in (3, 5, 7)]
    trainer = play(script, plain_config(rounds=3), callbacks=[Evaluation()], evaluation=EvaluationConfig(every=2))
    assert [step for step, row in trainer.history if "eval/loss" in row] == [0, 2, 3]
    assert [step for step, row in trainer.history if "hr/c0/eval/loss" in row] == [2, 3]


def test_a_sampled_department_has_a_standard_error_and_only_asked_clients_figures_of_their_own(play, state, tmp_path):
    script = [{f"hr/c{i}": (state((4, 0)), 1) for i in range(5)}]
    evaluation = EvaluationConfig(clients_per_dept=2)
    trainer = play(script, callbacks=[Evaluation()], evaluation=evaluation, run_folder=tmp_path)
    panel = {client_id for s, client_id in trainer.clients.evaluated if s is trainer.federation.initial}
    assert len(panel) == 2
    written = json.loads((tmp_path / "federated_eval.json").read_text())
    assert written["departments"]["hr"]["final"] == {**figures(4.0), "loss_stderr": 0.0}  # all clients lose alike
    assert dict(trainer.history)[1]["hr/eval/loss_stderr"] == 0.0
    assert len(json.loads((tmp_path / "client_eval_all_rounds.json").read_text())["rounds"]["1"]["hr"]) == 5


def test_many_clients_figures_are_logged_as_distributions(play, script, monkeypatch):
    monkeypatch.setattr("fl_lightning.trainer.MAX_CLIENTS", 2)
    row = dict(play(script, callbacks=[Evaluation(), ClientLog()]).history)[1]
    assert (row["hr/clients/eval/loss/min"], row["hr/clients/eval/loss/max"]) == (4.0, 8.0)
    assert not [name for name in row if name.startswith(("hr/c0", "hr/c1", "it/c0"))]
    assert row["hr/eval/loss"] == pytest.approx(7.0)
