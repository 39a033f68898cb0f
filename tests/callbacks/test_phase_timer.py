from types import SimpleNamespace

import pytest

from fl_lightning import PhaseTimer
from fl_lightning.callbacks import phase_timer


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands where it is put."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(phase_timer.time, "perf_counter", lambda: clock.now)
    return clock


def test_each_phase_has_its_own_seconds(clock):
    logged = []
    writer = SimpleNamespace(busy=5.0, waited=0.5)
    trainer = SimpleNamespace(writer=writer, log=logged.append)
    timer = PhaseTimer()
    timer.on_federation_start(trainer=trainer)
    for round_num in (1, 2):
        timer.on_round_start(trainer=trainer, tasks=[])
        for seconds in (3, 4):  # two clients
            clock.now += seconds
            timer.on_client_end(trainer=trainer, update=None)
        clock.now += 2.5  # 0.5 of it waiting for the disk
        writer.waited += 0.5
        timer.on_aggregate(trainer=trainer)
        clock.now += 1.5
        writer.busy += 0.25 * round_num
        timer.on_round_end(trainer=trainer)
        clock.now += 50  # exporting and the rest, which belongs to no phase
    whole = {"seconds/fit": 7.0, "seconds/aggregate": 2.0, "seconds/evaluate": 1.5}
    assert logged == [{**whole, "seconds/write": 0.25}, {**whole, "seconds/write": 0.5}]


def test_every_round_of_a_run_logs_its_seconds(play, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1)}] * 2, callbacks=[PhaseTimer()])
    for round_num in (1, 2):
        row = dict(trainer.history)[round_num]
        assert sorted(row) == ["seconds/aggregate", "seconds/evaluate", "seconds/fit", "seconds/write"]
        assert all(0 <= value < 30 for value in row.values())


def test_fit_gives_the_timer_its_place_behind_the_evaluation():
    from fl_lightning.config import RunConfig
    from fl_lightning.runs.build import make_callbacks

    names = [type(callback).__name__ for callback in make_callbacks(RunConfig())]
    assert names.index("FederatedRound") < names.index("Evaluation") < names.index("PhaseTimer")
    assert names.index("PhaseTimer") == names.index("Evaluation") + 1 < names.index("AdapterExport")
