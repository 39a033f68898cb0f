from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_lightning.config import LoggingConfig
from fl_lightning.errors import InputError
from fl_lightning.loggers.factory import make_loggers

CSV = "lightning.pytorch.loggers.CSVLogger"
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


def log_one(logger):
    logger.log_metrics({"train/loss": 1.5}, step=3)
    logger.save()
    logger.finalize("success")


def test_csv_writes_straight_into_the_run_folder(tmp_path):
    (logger,) = make_loggers([{"class_path": CSV}], tmp_path)
    log_one(logger)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [sorted(line.split(",")) for line in lines] == [["step", "train/loss"], ["1.5", "3"]]


def test_tensorboard_writes_straight_into_the_run_folder(tmp_path):
    (logger,) = make_loggers([{"class_path": TENSORBOARD}], tmp_path)
    log_one(logger)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_default_loggers_are_csv_and_tensorboard(tmp_path):
    loggers = make_loggers(LoggingConfig().loggers, tmp_path)
    assert [type(logger).__name__ for logger in loggers] == ["CSVLogger", "TensorBoardLogger"]


def test_save_dir_given_is_kept(tmp_path):
    (logger,) = make_loggers([{"class_path": CSV, "init_args": {"save_dir": str(tmp_path / "own")}}], tmp_path / "run")
    log_one(logger)
    assert list((tmp_path / "own").rglob("metrics.csv"))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_resumed_run_writes_its_rows_anew_and_no_old_ones_stay_beside_them(tmp_path):
    for fresh, steps in ((True, range(1, 7)), (False, [1, 2, 3])):
        loggers = make_loggers([{"class_path": TENSORBOARD}, {"class_path": CSV}], tmp_path, fresh=fresh)
        for logger in loggers:
            for step in steps:
                logger.log_metrics({"loss": float(step)}, step=step)
            logger.finalize("success")
    assert len(list(tmp_path.glob("events.*"))) == 1
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=False).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3


def test_what_a_logger_wrote_elsewhere_is_left_alone(tmp_path):
    spec = {
        "class_path": TENSORBOARD,
        "init_args": {"save_dir": str(tmp_path / "elsewhere"), "name": "", "version": ""},
    }
    for fresh, steps in ((True, range(1, 7)), (False, [1, 2, 3])):
        (logger,) = make_loggers([spec], tmp_path, fresh=fresh)
        for step in steps:
            logger.log_metrics({"loss": float(step)}, step=step)
        logger.finalize("success")
    assert len(list((tmp_path / "elsewhere").glob("events.*"))) == 2
    events = EventAccumulator(str(tmp_path / "elsewhere")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_no_loggers_are_none(tmp_path):
    assert make_loggers([], tmp_path) == []


@pytest.mark.parametrize(
    "path",
    ["nothing.there.Logger", "lightning.pytorch.loggers.NoLogger", "CSVLogger", "", "torch.nn.Linear", "os.path.join",
     ".relative.Logger", "a..b.Logger", "lightning.pytorch.loggers."],
)  # fmt: skip
def test_bad_class_path_is_an_input_error_that_names_it(tmp_path, path):
    with pytest.raises(InputError) as caught:
        make_loggers([{"class_path": CSV}, {"class_path": path}], tmp_path)
    assert f"logging.loggers[1]: {path}" in str(caught.value)


def test_unknown_argument_of_a_logger_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="colour"):
        make_loggers([{"class_path": CSV, "init_args": {"colour": "red"}}], tmp_path)
