import io

from rich.console import Console

from fl_lightning.runs.comparison.report import Comparison, as_png, tables
from fl_lightning.runs.comparison.statistics import RUN_METRICS, RunMetrics
from fl_lightning.runs.comparison.virtual_time import hours_to_loss_of


def made(curve, hours):
    metrics = {**dict.fromkeys(RUN_METRICS), "virtual_hours": hours[max(hours)] if hours else None}
    return RunMetrics(metrics, {"a": {"loss": curve[max(curve)]}}, curve, hours)


FIRST = {1: made({0: 5.0, 1: 4.0, 2: 3.0}, {1: 10.0, 2: 20.0})}
FASTER = {1: made({0: 5.0, 2: 3.5, 4: 2.5}, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})}  # evaluated every second round
WORSE = {1: made({0: 5.0, 1: 4.0}, {1: 1.0})}
UNTIMED = {1: made({0: 5.0, 1: 1.0}, {})}


def test_hours_are_those_until_the_loss_that_the_first_config_ends_with():
    assert [hours_to_loss_of(FIRST, runs) for runs in (WORSE, UNTIMED, {})] == [None] * 3
    assert [hours_to_loss_of(FIRST, runs).mean for runs in (FIRST, FASTER)] == [20.0, 4.0]


def test_compare_shows_virtual_time_only_if_there_is_any(monkeypatch):
    def printed(*runs):
        console = Console(file=io.StringIO(), width=100)
        for table in tables(Comparison([1], dict(zip(("sync", "late"), runs, strict=True)), {})):
            if table.title == "virtual time":
                console.print(table)
        return console.file.getvalue()

    assert printed(UNTIMED, UNTIMED) == ""
    text = printed(FIRST, FASTER)
    assert "to the loss of sync" in text
    assert text.count("20.000") == 2
    assert text.count("4.000") == 2


def test_the_picture_has_losses_over_hours_below_those_over_rounds():
    both = as_png(Comparison([1], {"sync": FIRST, "late": FASTER}, {}))
    one = as_png(Comparison([1], {"sync": FIRST, "late": UNTIMED}, {}))
    height = [int.from_bytes(png[20:24], "big") for png in (both, one)]
    assert height == [1350, 750]
