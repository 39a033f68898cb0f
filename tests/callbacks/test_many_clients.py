"""What a round costs depends on who is asked, not on who exists."""

import pytest

from fl_lightning.callbacks import ClientLog, ClusterMonitor, Evaluation, LoggerViews, RoundCheckpoint
from fl_lightning.config import EvaluationConfig
from tests.callbacks.test_many_departments import lines_run


def lines_of_rounds(play, config, state, folder, number):
    """Lines of bookkeeping in the second and third round, of `number` clients in one department."""
    update = (state((4, 1), (1, 0, 0)), 1)
    script = [{f"hr/c{k}": update for k in range(number)}] * 3
    lines = []
    for rounds in (1, 3):
        callbacks = [Evaluation(), ClusterMonitor(), ClientLog(), LoggerViews(), RoundCheckpoint()]
        config.rounds, run_folder = rounds, folder / f"{number}_{rounds}"
        run_folder.mkdir()
        panel = EvaluationConfig(clients_per_dept=8)
        lines.append(
            lines_run(lambda: play(script, config, callbacks=callbacks, run_folder=run_folder, evaluation=panel))  # noqa: B023
        )
    return lines[1] - lines[0]


@pytest.mark.parametrize(
    "options", [{"share": "all", "num_clusters": 2}, {"share": "a"}], ids=["client clusters", "personal factors"]
)
def test_five_times_the_clients_are_the_same_work(play, plain_config, state, tmp_path, options):
    config = plain_config(**options)
    config.clients_per_round = 4
    few, many = (lines_of_rounds(play, config, state, tmp_path, number) for number in (60, 300))
    assert many < 1.05 * few
