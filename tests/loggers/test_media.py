import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_lightning.loggers.factory import make_loggers
from fl_lightning.loggers.media import CELL, heatmap, log_image, log_layout, log_outcome, log_text, logger_kind

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
CSV = "lightning.pytorch.loggers.CSVLogger"
MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"


def has_colour(pixels, colour):
    return bool((pixels == np.array(colour, dtype=np.uint8)).all(-1).any())


def test_a_heatmap_is_red_at_one_white_at_nothing_and_blue_at_minus_one():
    picture = heatmap(["hr", "it"], [[1.0, -1.0], [-1.0, float("nan")]])
    assert picture.dtype == np.uint8
    assert picture.shape[0] > 2 * CELL
    assert all(has_colour(picture, colour) for colour in ((178, 24, 43), (33, 102, 172), (200, 200, 200)))
    half = heatmap(["hr", "it"], [[0.5, 0.5], [0.5, 0.5]])
    assert has_colour(half, (round(255 - 0.5 * 77), round(255 - 0.5 * 231), round(255 - 0.5 * 212)))


def test_many_names_give_a_picture_of_bounded_size():
    n = 300
    assert max(heatmap([f"department_{i}" for i in range(n)], np.eye(n).tolist()).shape) < 3000


def test_what_tensorboard_gets(tmp_path):
    (logger,) = make_loggers([{"class_path": TENSORBOARD}], tmp_path)
    log_layout(logger, {"loss": {"departments": ["hr/eval/loss", "it/eval/loss"]}})
    log_image(logger, "similarity/all", heatmap(["hr"], [[1.0]]), 2)
    log_text(logger, "samples/hr", "| prompt |", 2)
    log_outcome(logger, {"federation": {"rounds": 2}}, {"final/loss": 1.5}, 2)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert tags["images"] == ["similarity/all"]
    assert {"custom_scalars__config__", "samples/hr/text_summary"} <= set(tags["tensors"])
    assert [(e.step, e.value) for e in events.Scalars("final/loss")] == [(2, 1.5)]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert b"rounds" in events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert "hp_metric" not in tags["scalars"]


def test_mlflow_gets_pictures_and_texts_in_a_local_store(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed; the test extra has it")
    (logger,) = make_loggers([{"class_path": MLFLOW}], tmp_path)
    log_image(logger, "similarity/all", heatmap(["hr"], [[1.0]]), 2)
    log_text(logger, "samples/hr", "hello", 2)
    log_layout(logger, {"loss": {"departments": ["hr/eval/loss"]}})
    log_outcome(logger, {}, {"final/loss": 1.5}, 2)
    logger.finalize("success")
    files = [
        path.relative_to(tmp_path / "mlruns").as_posix() for path in (tmp_path / "mlruns").rglob("*") if path.is_file()
    ]
    assert any("artifacts/images/similarity_all" in name for name in files)
    (text,) = (tmp_path / "mlruns").rglob("hr_2.md")
    assert text.read_text() == "hello"
    assert any(name.endswith("metrics/final/loss") for name in files)


def test_loggers_of_figures_alone_get_nothing_else(tmp_path):
    (logger,) = make_loggers([{"class_path": CSV}], tmp_path)
    assert logger_kind(logger) == ""
    log_layout(logger, {})
    log_image(logger, "x", heatmap(["hr"], [[1.0]]), 1)
    log_text(logger, "x", "y", 1)
    log_outcome(logger, {}, {"final/loss": 1.0}, 1)
    logger.finalize("success")
    assert not (tmp_path / "metrics.csv").exists()


def test_wandb_is_called_by_its_own_methods():
    calls = []

    class WandbLogger:
        def log_image(self, key, images, step):
            calls.append(("image", key, len(images), step))

        def log_text(self, key, columns, data, step):
            calls.append(("text", key, columns, data, step))

        def log_metrics(self, figures, step):
            calls.append(("figures", figures, step))

    logger = WandbLogger()
    log_image(logger, "x", heatmap(["hr"], [[1.0]]), 1)
    log_text(logger, "t", "hello", 1)
    log_outcome(logger, {}, {"final/loss": 1.0}, 1)
    assert calls == [
        ("image", "x", 1, 1),
        ("text", "t", ["text"], [["hello"]], 1),
        ("figures", {"final/loss": 1.0}, 1),
    ]
