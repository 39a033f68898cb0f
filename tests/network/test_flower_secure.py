"""A whole run with secure aggregation over Flower: four sites of a department, a killed site and a killed server.

Sites that drop out at other steps, and servers that lie, are in coordinator/test_secure_clients.py and
site/test_masking.py.
"""

import json

import pytest
from flower_runs import adapters, in_process, largest_difference, prepare

from fl_lightning.provenance.signing import load_public_key, new_key
from fl_lightning.runs.verify import verify_run

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.xdist_group("flower")]

SITES = [f"hr/client_{i}" for i in range(4)]
SECURE = {
    "rounds": 2, "secure_aggregation": True, "dept_clusters": {"enabled": False}, "client_clusters": {"num_clusters": 1}
}  # fmt: skip


def site_folder(tmp_path, client_id):
    return tmp_path / "of_sites" / "sites" / client_id.replace("/", ".")


def test_sites_that_mask_end_as_one_process_does_though_a_site_and_the_server_are_killed(
    machines, tmp_path, cut_departments, micro_base, monkeypatch
):
    prepare(
        tmp_path, cut_departments, micro_base, SITES, 4, federation=SECURE, network={"roster": str(tmp_path / "roster")}
    )
    public = {c: new_key(site_folder(tmp_path, c) / "sign.key") for c in SITES}
    (tmp_path / "roster").write_text("".join(f"{c} {path.read_text()}" for c, path in public.items()))
    machines.server()
    machines.wait_for("server", "listening on")
    for client_id in SITES:
        machines.site(client_id)
    killed_site = SITES[1]
    machines.wait_for("server", "round 1: hr: masked updates of 4 sites have arrived")
    machines.kill(killed_site)
    machines.wait_for("server", "round 1: hr: a masked sum of 4 sites")
    machines.site(killed_site)
    for client_id in SITES:
        machines.wait_for(client_id, "round 2: fitted")
    machines.kill("server")
    machines.server("--resume", "last")
    codes = {name: machines.wait(name, 400) for name in ("server", *SITES)}
    assert set(codes.values()) == {0}, {name: machines.log(name)[-2000:] for name in codes}
    assert "round 2: hr: a masked sum of 4 sites" in machines.log("server")
    assert machines.left_over() == {}
    run_folder = tmp_path / "out" / "version_0"
    lines = verify_run(run_folder).chain.rounds
    assert [line["clients"] for line in lines.values()] == [{c: {"summed": True} for c in SITES}] * 2
    network = json.loads((run_folder / "network.json").read_text())
    assert network["starts"] == 2
    assert {c: info["public_key"] for c, info in network["sites"].items()} == {
        c: load_public_key(path) for c, path in public.items()
    }
    for client_id in SITES:
        (record,) = site_folder(tmp_path, client_id).glob("*/masked_rounds.json")
        rounds = json.loads(record.read_text())["rounds"]
        assert {number: entry["attempt"] for number, entry in rounds.items()} == {"1": 1, "2": 2}
    one_process = in_process(tmp_path, monkeypatch)
    assert largest_difference(adapters(run_folder), adapters(one_process)) <= 1e-6
