import json
import shutil

import pytest
import torch

from fl_lightning import ClientLog, Evaluation, FederatedCallback, RoundCheckpoint
from fl_lightning.callbacks.round_checkpoint import restore_callbacks
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint, save_checkpoint


class Keeper(FederatedCallback):
    def state_dict(self):
        return {"kept": [1, 2]}

    def round_record(self, round_num):
        return f"round {round_num}"


@pytest.fixture
def script(state):
    return [{f"hr/c{i}": (state((2 + i, 1), (i, 0, 0)), 1 + i) for i in range(3)}] * 4


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for owner, tensors in first.items():
        assert tensors.keys() == second[owner].keys()
        assert all(torch.equal(t, second[owner][n]) for n, t in tensors.items())


@pytest.mark.parametrize("share", ["all", "a"])
def test_checkpoint_holds_the_whole_state(play, plain_config, script, tmp_path, share):
    config = plain_config(rounds=4, share=share, num_clusters=2, enabled=True)
    wanted = play(script, config, callbacks=[RoundCheckpoint()], run_folder=tmp_path).federation
    got, _ = load_checkpoint(tmp_path / "checkpoints" / "round_4")
    assert (got.round_num, got.examples, got.cluster_assignments) == (4, wanted.examples, wanted.cluster_assignments)
    assert all(torch.equal(t, got.initial[n]) for n, t in wanted.initial.items())
    for kind in ("departments", "client_starts", "personal"):
        assert_equal_states(getattr(wanted, kind), getattr(got, kind))


@pytest.mark.parametrize("share", ["all", "a"])
def test_run_resumed_from_any_checkpoint_ends_in_the_same_bits(play, plain_config, script, tmp_path, share):
    config = plain_config(rounds=4, share=share, momentum=0.1, num_clusters=2, enabled=True)
    wanted = play(script, config, callbacks=[RoundCheckpoint(keep=0)], run_folder=tmp_path).federation
    for round_num in (1, 2, 3):
        resumed, _ = load_checkpoint(tmp_path / "checkpoints" / f"round_{round_num}")
        assert resumed.round_num == round_num
        got = play(script, config, resume=resumed).federation
        for kind in ("departments", "client_starts", "personal"):
            assert_equal_states(getattr(wanted, kind), getattr(got, kind))


def test_checkpoint_holds_what_callbacks_keep_and_the_rows(play, script, tmp_path):
    play(script[:2], callbacks=[ClientLog(), Keeper(), RoundCheckpoint()], run_folder=tmp_path)
    _, extra = load_checkpoint(tmp_path / "checkpoints" / "round_2")
    assert extra.callbacks == {"Keeper": {"kept": [1, 2]}}
    assert extra.records == {"Keeper": {0: "round 0", 1: "round 1", 2: "round 2"}}
    assert [step for step, _ in extra.history] == [1, 2]
    assert extra.history[1][1]["hr/c0/train/loss"] == 1.5


def test_a_checkpoint_does_not_grow_with_the_rounds(play, script, tmp_path):
    callbacks = [ClientLog(), Evaluation(), RoundCheckpoint(keep=0)]
    play(script * 5, callbacks=callbacks, run_folder=tmp_path)
    sizes = [(tmp_path / "checkpoints" / f"round_{n}" / "state.json").stat().st_size for n in (2, 20)]
    assert sizes[1] <= sizes[0] + 20
    lines = (tmp_path / "checkpoints" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(21))
    assert max(map(len, lines[1:])) < 1.2 * min(map(len, lines[1:]))


@pytest.fixture
def resumed(play, script, tmp_path):
    """Resume a run's folder after a round, and give back {file: content} of what callbacks write."""

    def run(round_num, folder, rounds=4):
        state, extra = load_checkpoint(folder / "checkpoints" / f"round_{round_num}")
        callbacks = [ClientLog(), Evaluation(), Keeper(), RoundCheckpoint(keep=0)]
        restore_callbacks(callbacks, extra)
        play(script[:rounds], callbacks=callbacks, run_folder=folder, resume=state, history=extra.history)
        return written(folder)

    return run


def written(folder):
    """What a run must give again to the byte."""
    names = ["checkpoints/history.jsonl", "client_eval_all_rounds.json", "checkpoints/round_4/state.json"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def whole(play, script, tmp_path):
    play(script, callbacks=[ClientLog(), Evaluation(), Keeper(), RoundCheckpoint(keep=0)], run_folder=tmp_path / "run")
    return tmp_path / "run", written(tmp_path / "run")


@pytest.mark.parametrize("round_num", [0, 1, 3])
def test_a_run_resumed_from_any_round_ends_with_the_same_history(whole, resumed, round_num):
    folder, files = whole
    assert resumed(round_num, folder) == files


def test_a_run_killed_between_its_history_and_its_checkpoint_resumes(whole, resumed):
    folder, files = whole
    for number in (2, 3, 4):
        shutil.rmtree(folder / "checkpoints" / f"round_{number}")
    with (folder / "checkpoints" / "history.jsonl").open("ab") as file:
        file.write(b'{"round":5,"ro')
    assert resumed(1, folder) == files


def test_a_run_begun_by_an_older_version_resumes(whole, resumed):
    """Its checkpoints hold the rows and all metrics, and there is no history.jsonl."""
    folder, files = whole
    state, extra = load_checkpoint(folder / "checkpoints" / "round_2")
    metrics = {str(number): clients for number, clients in extra.records.pop("Evaluation").items()}
    extra.callbacks["Evaluation"]["rounds"] = metrics
    (folder / "checkpoints" / "history.jsonl").unlink()
    save_checkpoint(folder / "checkpoints" / "round_2", state, extra)
    assert "loss" in (folder / "checkpoints" / "round_2" / "state.json").read_text()
    assert resumed(2, folder) == files


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [0, 1, 2, 3, 4])])
def test_retention_keeps_the_last_rounds(play, script, tmp_path, keep, left):
    play(script, callbacks=[RoundCheckpoint(keep)], run_folder=tmp_path)
    assert list(checkpoints(tmp_path)) == left


def test_nothing_is_pickled(play, script, tmp_path):
    play(script[:1], callbacks=[RoundCheckpoint()], run_folder=tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints" / "round_1").iterdir())
    assert names == ["manifest.json", "state.json", "state.safetensors"]


def test_failed_round_leaves_the_last_good_checkpoint(play, script, tmp_path):
    errors = []
    play([script[0], {}], callbacks=[RoundCheckpoint()], run_folder=tmp_path, on_error=errors.append)
    assert len(errors) == 1
    assert list(checkpoints(tmp_path)) == [0, 1]
    assert load_checkpoint(tmp_path / "checkpoints" / "round_1")[0].round_num == 1


def test_without_a_run_folder_nothing_is_written(play, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play(script[:1], callbacks=[RoundCheckpoint()])
    assert list(tmp_path.iterdir()) == []


def sent_by(state, *rounds):
    """A script in which these clients send updates; all are asked in every round."""
    return [{f"hr/{client}": (state((2, 1), (1, 0, 0)), 2) for client in clients} for clients in rounds]


@pytest.mark.parametrize(
    ("rounds", "bound", "kept"),
    [
        (["a", "ab", "ab", "ab"], 4, [1, 4]),
        (["a", "ab", "ab", "ab"], 0, [4]),
        (["a", "a", "a", "a", "ab"], 4, [1, 2, 3, 4, 5]),  # b is new until an update of it is valid
        (["a", "a", "a", "a", "ab"], 2, [1, 2, 5]),
        (["ab", "ab", "ab"], 4, [3]),  # a run from round 1 on needs no checkpoint
    ],
)
def test_checkpoints_before_first_rounds_are_kept_up_to_a_bound(play, state, tmp_path, rounds, bound, kept):
    play(sent_by(state, *rounds), callbacks=[RoundCheckpoint(keep=1, first_rounds=bound)], run_folder=tmp_path)
    assert list(checkpoints(tmp_path)) == kept


def test_a_resumed_run_keeps_the_same_first_rounds(play, state, tmp_path):
    script = sent_by(state, "a", "ab", "ab", "ab")
    play(script[:3], callbacks=[RoundCheckpoint(keep=1, first_rounds=2)], run_folder=tmp_path)
    resumed, extra = load_checkpoint(tmp_path / "checkpoints" / "round_3")
    callback = RoundCheckpoint(keep=1, first_rounds=2)
    restore_callbacks([callback], extra)
    play(script, callbacks=[callback], run_folder=tmp_path, resume=resumed)
    assert list(checkpoints(tmp_path)) == [1, 4]
