"""Runs of a micro base on cut departments, and what a run leaves."""

import json
import shutil

import pytest
from rich.console import Console
from run_files import metrics
from shared_folder import make_once

from fl_lightning.config.parsing import parse_config
from fl_lightning.provenance.run_files import describe_files
from fl_lightning.runs.fit import fit

ROUNDS = 3


@pytest.fixture(scope="session")
def departments(cut_departments, tmp_path_factory):
    """Three departments of four clients, each with three training records and one held-out one."""

    def make(folder):
        cut_departments(folder, 4, 3, 1)
        shutil.rmtree(next(folder.glob("customer_support*")))

    return make_once(tmp_path_factory, "forget_data", make)


@pytest.fixture(scope="session")
def run_fit(departments, micro_base):
    """Function that runs a small config with some options into a folder."""

    def run(output, *options):
        small = ["--clients-per-dept", "4", "--learning-rate", "5e-3", "--device-map", "cpu", "--logging.samples", "0"]
        small += ["--rounds", str(ROUNDS), "--data", str(departments), "--model.name_or_path", micro_base]
        csv = '--logging.loggers=[{"class_path": "lightning.pytorch.loggers.CSVLogger"}]'
        return fit(parse_config([*small, csv, *options, "--output", str(output)]), console=Console(quiet=True))

    return run


@pytest.fixture(scope="session")
def contents():
    """Function: what a run leaves, without seconds, its own name, and what only `forget` writes."""

    def read(folder):
        digests = describe_files(folder)
        del digests["files"]["config.yaml"]
        losses = sorted(folder.glob("client_runs/*/*/*.csv"))
        ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        states = [line["states"] for line in ledger if "states" in line]
        return {
            **digests,
            "losses": {path.relative_to(folder).as_posix(): path.read_text() for path in losses},
            "rows": metrics(folder),
            "ledger": states,
        }

    return read


@pytest.fixture(scope="session")
def shared_run(run_fit, tmp_path_factory):
    """Function: a run with some options, made once for all tests. Read it; copy it before changing it."""

    def make(name, *options):
        return make_once(tmp_path_factory, f"forget_{name}", lambda folder: run_fit(folder, *options)) / "version_0"

    return make


@pytest.fixture
def sampled(shared_run, tmp_path):
    """A copy of a run in which a round asks two of four clients."""
    return shutil.copytree(
        shared_run("sampled", "--federation.clients_per_round", "2"), tmp_path / "runs" / "version_0"
    )
