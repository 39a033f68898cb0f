"""Run folders: some made by hand, and one small run that all tests of this folder share."""

import shutil

import pytest
from report_runs import build_run, make_run
from run_files import CLIENTS, SELECTION, SMALL
from shared_folder import make_once

__all__ = ["build_run", "make_run"]


@pytest.fixture(scope="session")
def root(cut_departments, tmp_path_factory):
    """The bundled departments, cut to 8 training and 4 held-out records a client."""
    return make_once(tmp_path_factory, "run_data", lambda folder: cut_departments(folder, len(CLIENTS), 8, 4))


@pytest.fixture(scope="session")
def small(root, micro_base):
    """Arguments of a small run: little data, a micro base, no samples."""
    return [*SMALL, "--model.name_or_path", micro_base, "--logging.samples", "0", "--data", str(root)]


@pytest.fixture(scope="session")
def fit(small):
    """Function that runs a small config into a folder."""
    from fl_lightning.config.parsing import parse_config
    from fl_lightning.runs.fit import fit

    def run(output, *arguments, resume=None):
        config = parse_config([*small, "--output", str(output), *arguments])
        return fit(config, resume=resume)

    return run


@pytest.fixture(scope="session")
def finished(fit, tmp_path_factory):
    """A finished run of two rounds, with samples. Read it; copy it before changing it."""
    options = ["--rounds", "2", "--logging.samples", "1"]
    return make_once(tmp_path_factory, "finished_run", lambda folder: fit(folder, *options)) / "version_0"


@pytest.fixture(scope="session")
def with_selection(fit, tmp_path_factory):
    """A finished run of two rounds with selection records, whose departments mix predictions. Read it, as above."""
    options = ["--rounds", "2", *SELECTION, "--federation.dept_clusters.mix", "predictions", "--personal.prior", "2"]
    options += ["--personal.root", "trained"]
    return make_once(tmp_path_factory, "run_with_selection", lambda folder: fit(folder, *options)) / "version_0"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, which a test may change."""
    return shutil.copytree(finished, tmp_path / "moved")
