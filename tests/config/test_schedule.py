import pytest
from config_cases import refused

from fl_lightning.config import FederationConfig, ScheduleConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.schedule_compatibility import BUFFERED
from fl_lightning.errors import InputError
from fl_lightning.runs.fit import fit

KEY = "--federation.schedule."
TIME = [f"{KEY}clients.speed", "constant"]
LATE = [*TIME, f"{KEY}mode", "buffered", "--num-clusters", "1"]
BAD = {
    "products": (["--federation.combiner", "residual"], "federation.combiner: these combiners add up products"),
    "central": (
        ["--federation.share", "central", "--federation.combiner", "fedavg", "--no-dept-clustering"],
        "federation.share: one client has all records, so nobody is late",
    ),
    "nothing sent": (["--federation.share", "none", "--no-dept-clustering"], "federation.share: nothing is sent"),
    "factors in turns": (["--federation.share", "alternate"], "federation.share: clients that started in different"),
    "client clusters": (["--num-clusters", "2"], "federation.client_clusters.num_clusters: a buffer is too small"),
    "privacy": (
        ["--federation.guard.name", "dp", "--federation.weighting", "uniform"],
        "federation.guard.name: the accountant counts rounds",
    ),
    "clients' fits": (
        ["--federation.dept_clusters.select", "dynamic"],
        "federation.dept_clusters.select: clients' fits",
    ),
    "mixed predictions": (
        ["--federation.dept_clusters.mix", "predictions", "--data.selection_fraction", "0.2"],
        "federation.dept_clusters.mix: predictions are weighed after every round",
    ),
    "clients of a round": (
        ["--federation.clients_per_round", "2"],
        "federation.clients_per_round: schedule.concurrency",
    ),
    "share of clients": (["--federation.client_fraction", "0.5"], "federation.client_fraction: schedule.concurrency"),
    "quorum": (["--federation.min_clients", "11"], "federation.min_clients: no buffer has so many updates"),
    "krum": (
        ["--federation.guard.name", "krum", "--federation.guard.f", "4"],
        r"federation.guard.f: the guard needs 2 f \+ 3 updates, .* expected a smaller f",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_does_not_go_with_late_clients_is_refused_with_its_reason(arguments, message):
    from re import search

    said = refused(*LATE, *arguments)
    assert search(message, said)
    assert search(r"; expected .* with schedule\.mode: buffered, or mode: sync, got ", said)


def test_every_row_of_the_table_is_tested():
    assert len(BAD) == len(BUFFERED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{KEY}deadline", "3"], "clients.speed: expected constant, log_normal or trace"),
        ([f"{KEY}over_select", "0.3"], "clients.speed: expected constant"),
        ([*LATE, f"{KEY}deadline", "3"], "deadline: expected the default, or mode: sync"),
        ([*LATE, f"{KEY}over_select", "0.3"], "over_select: expected the default, or mode: sync"),
        ([f"{KEY}clients.speed", "trace"], "clients.trace: expected a file of profiles, got null"),
        ([*TIME, f"{KEY}clients.trace", "a"], "clients.trace: expected null unless speed is trace, got 'a'"),
        ([*TIME, f"{KEY}clients.slow_factor", "0.5"], "slow_factor: expected a number of at least 1"),
        ([*LATE, "--personal.own", "during"], "personal.own: federation.schedule.mode: buffered has late clients"),
        (
            [*TIME, *BAD["central"][0], "--num-clusters", "1"],
            "clients.speed: expected null with share: central",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(arguments, message):
    assert message in refused(*arguments)


def test_good_ones_are_taken_and_the_default_has_no_virtual_time():
    assert parse_config(LATE).federation.schedule.mode == "buffered"
    assert parse_config([*TIME, f"{KEY}deadline", "3", f"{KEY}over_select", "0.3"]).federation.schedule.deadline == 3
    assert FederationConfig().schedule == ScheduleConfig()
    assert ScheduleConfig().clients.speed is None


@pytest.mark.parametrize(("interval", "rounds"), [(None, [4, 8]), (3, [3, 6, 9])])
def test_departments_are_clustered_after_so_many_steps(interval, rounds):
    schedule = parse_config(LATE).federation.schedule
    schedule.steps_per_clustering = interval
    assert [r for r in range(1, 11) if schedule.clusters_in(r, 4)] == rounds


def test_buffered_steps_need_no_profiles_between_machines_and_do_in_one_process(tmp_path, monkeypatch):
    config = parse_config([f"{KEY}mode", "buffered", "--num-clusters", "1", "--output", str(tmp_path / "out")])
    with pytest.raises(InputError, match="virtual time that buffered steps in one process go by, got null"):
        fit(config)
    assert not (tmp_path / "out").exists()
