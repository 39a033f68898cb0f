"""Makes and compares runs whose clients are processes of Flower's on this machine."""

import shutil

import yaml
from safetensors.torch import load_file

RUN = {
    "data": {"root": "data", "max_records": 4},
    "training": {"learning_rate": 0.005, "clients_at_once": 1},
    "federation": {"rounds": 2},
    "network": {"join_timeout": 200.0, "deadline": 150.0},
}


def prepare(folder, cut_departments, clients=2, departments=None, **changes):
    """A folder with data, certificates and run.yaml; the client ids come back."""
    from fl_lightning.network.tls import list_sites, make_certificates

    cut_departments(folder / "data", clients, 4, 2)
    for place in (folder / "data").iterdir():
        if departments and place.name.removesuffix("_personal_clients") not in departments:
            shutil.rmtree(place)
    run = {**RUN, "data": {**RUN["data"], "clients_per_dept": clients}}
    for block, values in changes.items():
        run[block] = {**run.get(block, {}), **values}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    sites = list_sites(str(folder / "data"), None)
    make_certificates(folder / "certs", sites)
    return sites


def adapters(folder):
    found = {p.parent.name: load_file(p) for p in sorted(folder.glob("adapters/*/adapter_model.safetensors"))}
    assert found
    return found


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[d][name] - second[d][name]).abs().max()) for d in first for name in first[d])


def in_process(folder, monkeypatch):
    from fl_lightning.cli import main

    monkeypatch.chdir(folder)
    assert main(["fit", "--config", "run.yaml", "--output", "here"]) == 0
    return folder / "here" / "version_0"
