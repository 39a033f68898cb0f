import json
import statistics

import pytest

from fl_lightning.config import ClientProfilesConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.client_profiles import ClientProfile, client_profiles, read_trace

IDS = [f"hr/c{i}" for i in range(400)]


def speeds(ids=IDS, seed=1, **options):
    profile = client_profiles(ClientProfilesConfig(**options), ids, seed)
    return [profile(client_id).tokens_per_second for client_id in IDS]


def test_constant_speeds_are_equal_but_for_the_exact_share_of_slow_ones():
    assert speeds(speed="constant", tokens_per_second=5.0) == [5.0] * 400
    slow = speeds(speed="constant", tokens_per_second=5.0, slow_share=0.1, slow_factor=20)
    assert sorted(slow) == [0.25] * 40 + [5.0] * 360
    assert slow == speeds(ids=IDS[::-1], speed="constant", tokens_per_second=5.0, slow_share=0.1)
    assert slow != speeds(seed=2, speed="constant", tokens_per_second=5.0, slow_share=0.1)


def test_log_normal_speeds_have_their_median_and_spread():
    import math

    logs = [math.log(speed) for speed in speeds(speed="log_normal", tokens_per_second=100.0, sigma=0.5)]
    assert statistics.median(logs) == pytest.approx(math.log(100), abs=0.1)
    assert statistics.stdev(logs) == pytest.approx(0.5, abs=0.06)


def test_a_fit_waits_for_the_hours_of_its_client_and_for_the_transfer():
    profile = ClientProfile(10.0, bandwidth_kib=2.0, available_from=3600.0, available_for=7200.0)
    assert profile.end_of_fit(3600.0, 100, 4096) == 3600 + 2 + 10
    assert profile.end_of_fit(10799.0, 100, 0) == 10809  # it has begun, so it is finished
    assert profile.end_of_fit(10800.0, 100, 0) == 3600 + 24 * 3600 + 10
    assert profile.end_of_fit(0.0, 0, 0) == 3600


def test_a_trace_gives_named_clients_their_line_and_others_a_drawn_one(tmp_path):
    lines = [
        {"client": "hr/c0", "tokens_per_second": 7, "bandwidth_kib": 3},
        *({"tokens_per_second": n} for n in (1, 2)),
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    drawn = speeds(speed="trace", trace=str(path))
    assert drawn[0] == 7
    assert set(drawn[1:]) == {1, 2}
    assert 150 < drawn.count(1) < 250
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(InputError, match="expected a line for hr/c1, or lines without client"):
        speeds(speed="trace", trace=str(path))


@pytest.mark.parametrize(
    "line",
    ["[1]", "{", "{}", '{"tokens_per_second": 0}', '{"tokens_per_second": "3"}', '{"tokens_per_second": NaN}',
     '{"tokens_per_second": 3, "speed": 1}', '{"tokens_per_second": 3, "available_hours": 25}',
     '{"tokens_per_second": 3, "available_from": 24}', '{"tokens_per_second": 3, "client": 4}', "[" * 10**5],
)  # fmt: skip
def test_a_bad_line_of_a_trace_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"tokens_per_second": 3}\n' + line)
    with pytest.raises(InputError, match=r"trace\.jsonl:2: expected an object with tokens_per_second"):
        read_trace(path)


def test_an_empty_or_missing_trace_is_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="expected at least one profile"):
        read_trace(tmp_path / "empty")
    with pytest.raises(InputError, match=r"federation\.schedule\.clients\.trace: .*none: expected a JSON Lines file"):
        read_trace(tmp_path / "none")
