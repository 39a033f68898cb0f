"""The whole of it: server and sites as processes, TLS and node authentication, on the loopback interface."""

import json
import time

import pytest
from flower_runs import adapters, in_process, largest_difference, prepare

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_four_departments_of_two_sites_end_with_the_adapters_of_one_process(
    machines, tmp_path, cut_departments, monkeypatch
):
    sites = prepare(tmp_path, cut_departments)
    assert len(sites) == 8
    started = time.monotonic()
    machines.together(sites=sites).wait(400)
    print(f"{time.monotonic() - started:.1f} s")
    codes = json.loads(machines.log("together").splitlines()[-1])
    assert set(codes.values()) == {0}, {name: machines.log(name.removesuffix(".log"))[-2000:] for name in codes}
    assert len(codes) == 9
    assert machines.left_over() == {}
    for client_id in sites:
        assert machines.log(client_id).count("base model loaded") == 1
        assert machines.log(client_id).count("fitted 4 records") == 2
    found = tmp_path / "out" / "version_0"
    assert largest_difference(adapters(found), adapters(in_process(tmp_path, monkeypatch))) <= 1e-6
    assert len(json.loads((found / "network.json").read_text())["sites"]) == 8
