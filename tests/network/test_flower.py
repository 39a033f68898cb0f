"""Whole runs: server and sites as processes, TLS and node authentication, on the loopback interface."""

import json
import time

import pytest
import torch
from flower_runs import adapters, in_process, largest_difference, prepare
from safetensors.torch import load_file

pytestmark = [pytest.mark.network, pytest.mark.slow]

SHARE_A = {"rounds": 3, "share": "a", "dept_clusters": {"enabled": False}, "client_clusters": {"num_clusters": 1}}


@pytest.mark.xdist_group("flower_four_sites")
def test_two_departments_of_two_sites_end_with_the_adapters_of_one_process(
    machines, tmp_path, cut_departments, monkeypatch
):
    sites = prepare(tmp_path, cut_departments, departments=["finance", "hr"], personal={"own": "during"})
    assert len(sites) == 4
    started = time.monotonic()
    machines.server()
    machines.wait_for("server", "listening on")  # an earlier SuperNode is turned away and starts again
    for client_id in sites:
        machines.site(client_id)
    codes = {name: machines.wait(name, 400) for name in ("server", *sites)}
    print(f"{time.monotonic() - started:.1f} s")
    assert set(codes.values()) == {0}, {name: machines.log(name)[-2000:] for name in codes}
    assert machines.left_over() == {}
    for client_id in sites:
        assert machines.log(client_id).count("base model loaded") == 1
        assert machines.log(client_id).count("fitted 4 records") == 2
    run_folder = tmp_path / "out" / "version_0"
    one_process = in_process(tmp_path, monkeypatch)
    assert largest_difference(adapters(run_folder), adapters(one_process)) <= 1e-6
    for client_id in sites:
        (kept,) = tmp_path.glob(f"of_sites/sites/{client_id.replace('/', '.')}/*/round_2/kept.safetensors")
        own = load_file(one_process / "checkpoints" / "round_2" / "own" / f"{client_id}.safetensors")
        at_site = load_file(kept)
        assert all(torch.equal(at_site[f"own_adapter|{name}"], tensor) for name, tensor in own.items())
    assert not list(run_folder.glob("**/own"))
    assert sorted(json.loads((run_folder / "network.json").read_text())["sites"]) == sorted(sites)


@pytest.mark.xdist_group("flower_kills")
def test_a_run_in_which_a_site_and_then_the_server_are_killed_ends_as_if_they_were_not(
    machines, tmp_path, cut_departments, monkeypatch
):
    sites = prepare(tmp_path, cut_departments, departments=["hr"], federation=SHARE_A)
    killed_site, other_site = sites
    machines.server()
    for client_id in sites:
        machines.site(client_id)
    machines.wait_for("server", "round 1 of 3")
    machines.kill(killed_site)
    killed_at = time.monotonic()
    machines.site(killed_site)
    machines.wait_for(killed_site, "round 2: fitted")
    print(f"kill -9 of a site to its fit: {time.monotonic() - killed_at:.1f} s")
    machines.wait_for("server", "round 2 of 3")
    machines.kill("server")
    killed_at = time.monotonic()
    machines.server("--resume", "last")
    machines.wait_for("server", "has joined", count=4)
    print(f"kill -9 of the server to all sites back: {time.monotonic() - killed_at:.1f} s")
    for name in ("server", *sites):
        assert machines.wait(name, 240) == 0, machines.log(name)[-3000:]
    print(f"kill -9 of the server to the end of the run: {time.monotonic() - killed_at:.1f} s")
    assert machines.log(killed_site).count("base model loaded") == 2
    assert machines.log(other_site).count("base model loaded") == 1
    assert machines.left_over() == {}
    # B stays at the sites: the server has A, as one process has it.
    shared = {d: shared_factor(state) for d, state in adapters(tmp_path / "out" / "version_0").items()}
    expected = {d: shared_factor(state) for d, state in adapters(in_process(tmp_path, monkeypatch)).items()}
    assert largest_difference(shared, expected) <= 1e-6


def shared_factor(state):
    return {name: tensor for name, tensor in state.items() if "lora_A" in name}
