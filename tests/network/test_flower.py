"""A whole run: server and sites as processes, TLS and node authentication, on the loopback interface.

Runs that nothing happens to, and what else a server and its sites may be asked for, are in test_runs_in_memory.py.
"""

import json
import time

import pytest
import torch
from flower_runs import adapters, in_process, largest_difference, prepare
from safetensors.torch import load_file

from fl_lightning.provenance.signing import load_public_key
from fl_lightning.runs.verify import verify_run

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.xdist_group("flower")]

SITES = ["finance/client_0", "hr/client_0", "hr/client_1"]
SHARE_A = {"rounds": 3, "share": "a", "dept_clusters": {"enabled": False}, "client_clusters": {"num_clusters": 1}}


def test_a_run_in_which_a_site_and_then_the_server_are_killed_ends_as_one_process_does(
    machines, tmp_path, cut_departments, micro_base, monkeypatch
):
    lending = {"personal": {"own": "during", "mates": "all"}, "network": {"lend": "all"}}
    prepare(tmp_path, cut_departments, micro_base, SITES, federation=SHARE_A, **lending)
    _, killed_site, other_site = SITES
    machines.server()
    machines.wait_for("server", "listening on")  # an earlier SuperNode is turned away and starts again
    for client_id in SITES:
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
    machines.wait_for("server", "has joined", count=2 * len(SITES))
    print(f"kill -9 of the server to all sites back: {time.monotonic() - killed_at:.1f} s")
    codes = {name: machines.wait(name, 400) for name in ("server", *SITES)}
    print(f"kill -9 of the server to the end of the run: {time.monotonic() - killed_at:.1f} s")
    assert set(codes.values()) == {0}, {name: machines.log(name)[-2000:] for name in codes}
    assert {name: machines.log(name).count("base model loaded") for name in SITES} == {
        SITES[0]: 1, killed_site: 2, other_site: 1,
    }  # fmt: skip
    assert machines.log(other_site).count("fitted 4 records") >= 3
    assert machines.left_over() == {}
    run_folder = tmp_path / "out" / "version_0"
    assert sorted(json.loads((run_folder / "network.json").read_text())["sites"]) == SITES
    public = [load_public_key(tmp_path / f"of_sites/sites/{c.replace('/', '.')}/sign.key.pub") for c in SITES]
    assert verify_run(run_folder).site_keys == dict(zip(SITES, public, strict=True))
    one_process = in_process(tmp_path, monkeypatch)
    # B stays at the sites: the server has A, as one process has it.
    shared = {d: shared_factor(state) for d, state in adapters(run_folder).items()}
    expected = {d: shared_factor(state) for d, state in adapters(one_process).items()}
    assert sorted(shared) == ["finance", "hr"]
    assert largest_difference(shared, expected) <= 1e-6
    own = {c: load_file(one_process / "checkpoints" / "round_3" / "own" / f"{c}.safetensors") for c in SITES}
    for client_id in SITES:
        (kept,) = tmp_path.glob(f"of_sites/sites/{client_id.replace('/', '.')}/*/round_3/kept.safetensors")
        at_site = load_file(kept)
        assert all(torch.equal(at_site[f"own_adapter|{name}"], tensor) for name, tensor in own[client_id].items())
        lent = {f"{c}|{name}": t for c in SITES if c != client_id for name, t in own[c].items()}
        received = load_file(kept.parent.parent / "received" / "mates.safetensors")
        assert received.keys() == lent.keys()
        assert all(torch.equal(received[name], tensor) for name, tensor in lent.items())
    assert not list(run_folder.glob("**/own"))


def shared_factor(state):
    return {name: tensor for name, tensor in state.items() if "lora_A" in name}
