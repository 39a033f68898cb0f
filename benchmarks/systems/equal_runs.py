"""What two runs with the same config have in common, and whether the files of a killed one are whole."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from fl_lightning.provenance.chain_check import check_chain
from fl_lightning.storage.run_layout import LEDGER, LEDGER_SECRET

NOT_COMPARED = ("metrics.csv", "events.out.tfevents.", "hparams.yaml", "config.yaml", ".lock")
"""Rows hold memory figures, events clock times, config.yaml the output folder."""

WITH_ROWS = ("history.jsonl", "state.json", "manifest.json")
"""Files of checkpoints with rows or their size; the rows are compared, and states are but for the key extra."""

SALTED = {"previous", "run", "update", "own", "records", "client_starts"}
"""Keys of the ledger whose values depend on the secret of the run, which is drawn."""


def results(run_folder: Path) -> dict[str, Any]:
    """What two equal runs have in common: {path: SHA-256}, the rows of metrics.csv and TensorBoard's points."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run_folder.rglob("*") if p.is_file()):
        name = path.relative_to(run_folder).as_posix()
        if name.startswith("checkpoints/") and path.name == "state.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "extra"}
        elif name == LEDGER:
            found[name] = [unsalted(line) for line in check_chain(path.read_bytes()).lines]
        elif not name.startswith((*NOT_COMPARED, LEDGER_SECRET)) and path.name not in WITH_ROWS:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    with (run_folder / "metrics.csv").open(newline="") as file:
        own = ("memory/", "seconds/")  # these differ from run to run
        rows = [{k: v for k, v in row.items() if not k.startswith(own)} for row in csv.DictReader(file)]
    found["rows"] = rows
    found["points"] = points(run_folder)
    return found


def unsalted(value: Any) -> Any:
    """A part of the ledger without what no two runs have in common."""
    if not isinstance(value, dict):
        return value
    return {key: unsalted(part) for key, part in value.items() if key not in SALTED and key != "config.yaml"}


def points(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} as they stand in all event files, nothing purged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("memory/", "seconds/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def check_whole(run_folder: Path) -> None:
    """Whatever has its final name is whole.

    Raises:
        AssertionError: naming the file that is not.
    """
    from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint
    from fl_lightning.storage.tensors import read_state

    for path in run_folder.rglob("*"):
        if ".tmp" in "".join(part for part in path.parts if part.startswith(".")):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                read_state(path)
        except ValueError as error:
            raise AssertionError(f"{path} is torn: {error}") from error
    found = checkpoints(run_folder)
    if found:
        load_checkpoint(found[max(found)])


def differences(wanted: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Names of what differs; of a line of the ledger also the key."""
    names = [name for name in sorted(wanted.keys() | got.keys()) if wanted.get(name) != got.get(name)]
    return [f"{name}{_first_key(wanted.get(name), got.get(name))}" for name in names]


def _first_key(wanted: Any, got: Any) -> str:
    """Where two values of JSON differ first, such as ``:2:clients:hr/client_0``."""
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        wanted, got = dict(enumerate(wanted, 1)), dict(enumerate(got, 1))
    if not isinstance(wanted, dict) or not isinstance(got, dict):
        return ""
    key = next(key for key in [*wanted, *got] if wanted.get(key) != got.get(key))
    return f":{key}{_first_key(wanted.get(key), got.get(key))}"
