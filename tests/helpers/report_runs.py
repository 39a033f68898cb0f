"""Run folders made by hand: what a report reads, without a model and without training."""

import csv
import functools
import json
import math

import pytest
import torch
from safetensors.torch import save_file

A, B = "layer.lora_A.weight", "layer.lora_B.weight"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def figures(loss):
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 0.25}


def loss_of(number, round_num):
    """Of the department with that number: 6, 5.9, 5.8, …, falling by a hundredth a round."""
    return 6 - 0.1 * number - 0.01 * round_num


def write_adapter(folder, a):
    folder.mkdir(parents=True)
    save_file({A: a, B: torch.zeros(2, 1)}, folder / "adapter_model.safetensors")


def build(root, departments, rounds=3, planned=None, left_out=(), rank=1, name="version_0", clusters=True):
    """A run folder under `root`; {department: clients}, rounds, and what the reports of a run hold besides."""
    folder = root / name
    folder.mkdir(parents=True)
    names = list(departments)
    (folder / "config.yaml").write_text(f"seed: 1\nfederation:\n  rounds: {planned or rounds}\n")
    rows = []
    for r in range(rounds + 1):
        row = {"step": r, "eval/loss": sum(loss_of(n, r) for n in range(len(names))) / len(names)}
        row.update({f"{name}/eval/loss": loss_of(n, r) for n, name in enumerate(names)})
        if r:
            row.update({"seconds/fit": 2.0, "seconds/aggregate": 0.5, "seconds/evaluate": 1.0, "seconds/write": 0.2})
        rows.append(row)
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        table.writeheader()
        table.writerows(rows)
    whole = {
        name: {"base": figures(loss_of(n, 0)), "final": figures(loss_of(n, rounds))} for n, name in enumerate(names)
    }
    write_json(folder / "federated_eval.json", {"departments": whole, "mean": {}})
    own = {
        str(r): {
            name: {
                c: {**figures(loss_of(n, r) - 1 - i / 10), "num_examples": 8} for i, c in enumerate(departments[name])
            }
            for n, name in enumerate(names)
        }
        for r in range(1, rounds + 1)
    }
    write_json(folder / "client_eval_all_rounds.json", {"rounds": own})
    half = {name: int(n >= len(names) / 2) for n, name in enumerate(names)}
    cosine = [[1.0 if i == j else (0.8 if half[a] == half[b] else -0.25) for j, b in enumerate(names)]
              for i, a in enumerate(names)]  # fmt: skip
    for r in range(1, rounds + 1):
        place = folder / "cluster_metadata"
        found = {"n_clusters": 2, "assignments": half, "method": "kmeans", "select": "elbow"}
        found["inertias"] = {"1": 4.0, "2": 1.0, "3": 0.5}
        alike = {"departments": names, "cosine": cosine, "representation": "delta"}
        if clusters:
            write_json(place / f"round_{r}_department_clusters.json", {"round": r, **found})
            write_json(place / f"round_{r}_similarity.json", {"round": r, **alike})
        inner = {name: {"assignments": {c: i % 2 for i, c in enumerate(departments[name])}} for name in names}
        write_json(place / f"round_{r}_client_clusters.json", {"round": r, "departments": inner})
        out = {name: {c: why for at, d, c, why in left_out if (at, d) == (r, name)} for name in names}
        aggregation = {name: {"left_out": out[name], "scaled": {}, "epsilon": None} for name in names}
        sent = {"client/up": 2048, "client/down": 4096, "department/up": 1024, "department/down": 1024}
        write_json(place / f"round_{r}_aggregation.json", {"round": r, "departments": aggregation, "bytes": sent})
    start = torch.ones(rank, 8)
    for n, name in enumerate(names):
        draw = torch.Generator().manual_seed(n)
        centre = torch.randn(rank, 8, generator=draw)
        write_adapter(folder / "adapters" / name, start + 0.1 * centre)
        for client in departments[name]:
            moved = centre + 0.3 * torch.randn(rank, 8, generator=draw)
            write_adapter(folder / "client_exports" / name / f"round_{rounds}_{client}", start + moved)
    saved = folder / "checkpoints" / f"round_{rounds}"
    saved.mkdir(parents=True)
    save_file({f"initial|0|{A}": start, f"initial|0|{B}": torch.zeros(2, rank)}, saved / "state.safetensors")
    return folder


@pytest.fixture(scope="session")
def build_run():
    """Function that builds a run folder under a root."""
    return build


@pytest.fixture
def make_run(tmp_path):
    """The same, under the test's own folder."""
    return functools.partial(build, tmp_path)
