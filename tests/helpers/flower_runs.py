"""Makes and compares runs whose clients are processes of Flower's on this machine."""

import shutil

import yaml
from safetensors.torch import load_file

RUN = {
    "data": {"root": "data", "max_records": 4, "clients_per_dept": "all"},
    "training": {"learning_rate": 0.005, "clients_at_once": 1},
    "federation": {"rounds": 2},
    "network": {"join_timeout": 200.0, "deadline": 150.0},
}


def prepare(folder, cut_departments, micro_base, sites, clients=2, **changes):
    """Fill a folder with the data of sites ``department/client_N``, N below `clients`, with keys and run.yaml."""
    from fl_lightning.network.tls import list_sites, make_certificates

    cut_departments(folder / "data", clients, 4, 2)
    for client in (folder / "data").glob("*/*"):
        if f"{client.parent.name.removesuffix('_personal_clients')}/{client.name}" not in sites:
            shutil.rmtree(client)
    for department in (folder / "data").iterdir():
        if not any(department.iterdir()):
            department.rmdir()
    run = {**RUN, "model": {"name_or_path": micro_base}}
    for block, values in changes.items():
        run[block] = {**run.get(block, {}), **values}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    assert sorted(list_sites(str(folder / "data"), None)) == sorted(sites)
    make_certificates(folder / "certs", sites)


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
