"""A round's bookkeeping is linear in the number of departments."""

import sys

import pytest
import torch

from fl_lightning.callbacks import AdapterExport, ClusterMonitor, Evaluation, LoggerViews
from fl_lightning.federation.personal_mean import mean_personal
from fl_lightning.federation.state import clients_by_department

BOOKKEEPING = ("callbacks", "aggregation", "federation", "privacy", "training", "evaluation", "trainer.py")
"""Where a round looks after its departments, as opposed to the arithmetic on their tensors."""


def lines_run(function):
    """Lines of bookkeeping that a call runs: a measure of work that does not depend on the machine's load."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    def trace_bookkeeping(frame, event, argument):
        _, _, inner = frame.f_code.co_filename.partition("/fl_lightning/")
        return trace(frame, event, argument) if inner.startswith(BOOKKEEPING) else None

    before = sys.gettrace()
    sys.settrace(trace_bookkeeping)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def play_with(play, plain_config, state, number, **config):
    script = [{f"d{i}/c{k}": (state((1 + k, i), (k, i, 0)), 1 + k) for i in range(number) for k in range(3)}]
    settings = plain_config(rounds=1, share=config.pop("share", "all"), num_clusters=config.pop("num_clusters", 1))
    for name, value in config.items():
        setattr(settings, name, value)
    callbacks = [Evaluation(), ClusterMonitor(save_metadata=False), LoggerViews(), AdapterExport()]
    return lines_run(lambda: play(script, settings, callbacks=callbacks))


@pytest.mark.parametrize(
    "config",
    [{"share": "a", "clients_per_round": 2}, {"num_clusters": 2, "weighting": "contribution"}],
    ids=["personal factors, sampled", "client clusters, contribution"],
)
def test_four_times_the_departments_are_four_times_the_work(play, plain_config, state, config):
    few, many = (play_with(play, plain_config, state, number, **config) for number in (25, 100))
    assert many < 4.4 * few


def test_personal_means_of_a_thousand_departments_read_each_client_once():
    names = [f"d{i}/c{k}" for i in range(1000) for k in range(3)]
    reads = dict.fromkeys(names, 0)

    class Counted(dict):
        def __getitem__(self, name):
            reads[name] += 1
            return super().__getitem__(name)

    personal = Counted({name: {"lora_B": torch.ones(1)} for name in names})
    examples = dict.fromkeys(names, 1)
    means = [mean_personal(personal, examples, ids) for ids in clients_by_department(names).values()]
    assert len(means) == 1000
    assert set(reads.values()) == {1}


def test_a_round_of_a_thousand_departments(play, plain_config, state, monkeypatch):
    monkeypatch.setattr("fl_lightning.callbacks.federated_round.MAX_IN_MEMORY", 10**6)
    script = [{f"d{i}/c{k}": (state((1 + k, i)), 1 + k) for i in range(1000) for k in range(2)}]
    trainer = play(script, plain_config(rounds=1, share="a"))
    assert len(trainer.federation.departments) == 1000
    assert len(trainer.federation.personal) == 2000
    expected = torch.tensor([[(1 * 1 + 2 * 2) / 3, 999.0]])
    assert torch.allclose(trainer.federation.departments["d999"]["w.lora_A.weight"], expected)
