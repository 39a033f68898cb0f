"""Read the files of a finished run, and put them back."""

import csv
import hashlib
import json
import shutil

DEPARTMENTS = ["customer_support", "engineering", "finance", "hr"]
CLIENTS = ["client_0", "client_1"]
SMALL = ["--clients-per-dept", "2", "--max-records", "8", "--learning-rate", "5e-3", "--device-map", "cpu"]

SELECTION = ["--data.selection_fraction", "0.25", "--federation.combiner", "fedavg", "--batch-size", "2"]
"""Options of a run whose clients have two selection records each."""


def adapters(folder):
    """{path: sha256} of every adapter's tensors."""
    files = sorted(folder.glob("adapters/*/*.safetensors")) + sorted(folder.glob("client_exports/*/*/*.safetensors"))
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def metrics(folder):
    """{step: {name: value}} of metrics.csv; memory and seconds, which differ from run to run, left out."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["step"] for row in rows})
    own = ("memory/", "seconds/")
    return {int(row["step"]): {k: v for k, v in row.items() if v != "" and not k.startswith(own)} for row in rows}


def scalars(folder):
    """{tag: {step: value}} of the TensorBoard events, each step of a tag once and in ascending order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, rows in found.items():
        assert [e.step for e in rows] == sorted({e.step for e in rows}), tag
    return {tag: {e.step: e.value for e in rows} for tag, rows in found.items()}


def read(folder, name):
    return json.loads((folder / name).read_text())


def flat(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}/{key}").items()}


def restore(source, run):
    """Make a folder the same as another one, writing only what differs."""
    for path in sorted(run.rglob("*"), reverse=True):
        original = source / path.relative_to(run)
        if not original.exists():
            path.rmdir() if path.is_dir() else path.unlink()
    for path in sorted(source.rglob("*")):
        copy = run / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copy(path, copy)
