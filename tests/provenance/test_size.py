"""The ledger has at most 2 KiB for each client and round."""

import json

from fl_lightning.provenance.digests import canonical

MAX_BYTES = 2048


def test_a_run_has_at_most_2_kib_for_each_client_and_round(signed_run):
    data = (signed_run / "ledger.jsonl").read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    assert len(data) <= MAX_BYTES * sum(len(line["clients"]) for line in lines if line["kind"] == "round")


def test_a_client_alone_in_its_department_with_all_that_a_line_can_say_fits_too():
    long = "d" * 24
    client_id, digest = f"{long}/{'c' * 24}", "0" * 64
    line = {
        "clients": {
            client_id: {
                **dict.fromkeys(("update", "own", "records"), digest),
                "examples": 10**9,
                "weight": 0.12345678901234567,
                "scaled": 0.12345678901234567,
                "rejected": "distance from the start: expected at most 0.5 (federation.max_update_norm), got 1",
            }
        },
        "no_reply": [client_id],
        "dropped": [client_id],
        "departments": {long: {"aggregated": digest, "client_clusters": {"c" * 24: 10}, "client_starts": digest}},
        "clusters": {long: 12},
        "states": {"departments": {long: digest}, "groups": {}},
    }
    assert len(canonical(line)) <= MAX_BYTES
