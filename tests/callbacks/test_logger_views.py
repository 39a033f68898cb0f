"""A run's views in TensorBoard, from rounds without training."""

import dataclasses

import numpy as np
from lightning.fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_lightning import ClusterMonitor, Evaluation, LoggerViews
from fl_lightning.config import HierarchyConfig
from fl_lightning.loggers.factory import make_loggers


def run(play, config, state, tmp_path, rounds=2):
    script = [{f"{d}/c0": (state((5, i)), 1) for i, d in enumerate(("hr", "it", "law"))}] * rounds
    (logger,) = make_loggers([{"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}], tmp_path)
    views = LoggerViews({"federation": {"rounds": rounds}, "seed": 7})
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[logger])
    play(script, config, callbacks=[Evaluation(), ClusterMonitor(), views], fabric=fabric)
    logger.finalize("success")
    return EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()


def test_similarities_are_drawn_every_round_and_the_outcome_once(play, plain_config, state, tmp_path):
    config = plain_config(rounds=2, enabled=True)
    config = dataclasses.replace(config, hierarchy=HierarchyConfig({"office": ["hr", "law"]}))
    events = run(play, config, state, tmp_path)
    assert [image.step for image in events.Images("similarity/all")] == [1, 2]
    assert [image.step for image in events.Images("similarity/office")] == [1, 2]
    last = events.Scalars("eval/loss")[-1].value
    assert [(e.step, e.value) for e in events.Scalars("final/loss")] == [(2, last)]
    for tag in ("eval/loss", "hr/eval/loss", "office/eval/loss"):
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)) == [0, 1, 2]  # rising, none twice


def test_without_clusters_there_is_nothing_to_draw(play, plain_config, state, tmp_path):
    events = run(play, plain_config(rounds=1), state, tmp_path, rounds=1)
    assert events.Tags()["images"] == []
    assert np.isfinite(events.Scalars("final/loss")[0].value)
