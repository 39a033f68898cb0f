"""kill -9 of a site and of the server, in the middle of a run between processes."""

import time

import pytest
from flower_runs import adapters, in_process, largest_difference, prepare

pytestmark = [pytest.mark.network, pytest.mark.slow]

ROUNDS = {"rounds": 3, "share": "a", "dept_clusters": {"enabled": False}, "client_clusters": {"num_clusters": 1}}


def start(machines, sites):
    machines.server()
    for client_id in sites:
        machines.site(client_id)


def shared_part(found):
    return {d: {n: t for n, t in state.items() if "lora_A" in n} for d, state in found.items()}


def test_a_site_that_is_killed_and_started_again_leaves_no_trace_in_the_result(
    machines, tmp_path, cut_departments, monkeypatch
):
    sites = prepare(tmp_path, cut_departments, departments=["hr"], federation=ROUNDS)
    start(machines, sites)
    machines.wait_for("hr/client_0", "round 1: fitted", 240)
    machines.wait_for("server", "round 1 of 3", 120)
    machines.kill("hr/client_0")
    killed = time.monotonic()
    machines.site("hr/client_0")
    machines.wait_for("hr/client_0", "round 2: fitted", 240)
    print(f"kill -9 of a site to its fit: {time.monotonic() - killed:.1f} s")
    assert machines.processes["server"].wait(240) == 0, machines.log("server")[-3000:]
    assert machines.left_over(30) == {}
    # B stays at the sites; what the server has is A, as in one process.
    found = shared_part(adapters(tmp_path / "out" / "version_0"))
    assert largest_difference(found, shared_part(adapters(in_process(tmp_path, monkeypatch)))) <= 1e-6


def test_a_killed_server_goes_on_with_the_sites_that_are_still_up(machines, tmp_path, cut_departments, monkeypatch):
    sites = prepare(tmp_path, cut_departments, departments=["hr"], federation=ROUNDS)
    start(machines, sites)
    machines.wait_for("server", "round 2 of 3", 300)
    machines.kill("server")
    killed = time.monotonic()
    machines.server("--resume", "last")
    machines.wait_for("server", "has joined", 240, count=4)
    print(f"kill -9 of the server to all sites back: {time.monotonic() - killed:.1f} s")
    assert machines.processes["server"].wait(240) == 0, machines.log("server")[-3000:]
    for client_id in sites:
        assert machines.processes[client_id.replace("/", ".")].wait(30) == 0
        assert machines.log(client_id).count("base model loaded") == 1
    print(f"kill -9 of the server to the end of the run: {time.monotonic() - killed:.1f} s")
    assert machines.left_over(30) == {}
    found = shared_part(adapters(tmp_path / "out" / "version_0"))
    assert largest_difference(found, shared_part(adapters(in_process(tmp_path, monkeypatch)))) <= 1e-6
