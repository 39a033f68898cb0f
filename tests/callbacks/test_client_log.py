import csv

from fl_lightning import ClientLog


def test_losses_of_every_step_stand_in_a_file_of_the_client_and_round(play, state, tmp_path):
    play([{"hr/c0": (state((2, 0)), 1)}] * 2, callbacks=[ClientLog()], run_folder=tmp_path)
    folder = tmp_path / "client_runs" / "hr" / "c0"
    assert sorted(p.name for p in folder.iterdir()) == ["round_1.csv", "round_2.csv"]
    with open(folder / "round_2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"step": "1", "train/loss": "2"}, {"step": "2", "train/loss": "1"}]


def test_mean_loss_goes_to_the_loggers_under_the_clients_name(play, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1), "it/c3": (state((2, 0)), 1)}], callbacks=[ClientLog()])
    assert dict(trainer.history)[1] == {"hr/c0/train/loss": 1.5, "it/c3/train/loss": 1.5}


def test_without_a_run_folder_nothing_is_written(play, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play([{"hr/c0": (state((2, 0)), 1)}], callbacks=[ClientLog()])
    assert list(tmp_path.iterdir()) == []


def test_client_that_took_no_step_has_no_log(play, state, tmp_path):
    from types import SimpleNamespace

    from fl_lightning.federation.protocol import ClientUpdate

    logged = {}
    trainer = SimpleNamespace(run_folder=tmp_path, log=logged.update)
    ClientLog().on_client_end(trainer=trainer, update=ClientUpdate("hr/c0", 1, state(), 1, 0, []))
    assert logged == {}
    assert list(tmp_path.iterdir()) == []
