import json
import math

import pytest

from fl_lightning import Evaluation

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


def test_without_a_run_folder_figures_are_kept_but_not_written(play, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = Evaluation()
    play(script, callbacks=[callback])
    assert callback.final["hr"]["loss"] == pytest.approx(7.0)
    assert list(tmp_path.iterdir()) == []
