"""Runs of several processes from the command line: the same files, and nothing left behind however they end."""

import gc
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from forked import Forked

from fl_lightning import launch
from fl_lightning.federation.checkpoint import checkpoints

SMALL = ["--logging.samples", 0, "--clients-per-dept", 2, "--lora-r", 2, "--learning-rate", 0.005]

pytestmark = pytest.mark.xdist_group("forked")


@pytest.fixture(scope="module")
def fit(cut_departments, micro_base, tmp_path_factory):
    """A run on four bundled departments, two clients each, 4 training and 2 held-out records."""
    data = cut_departments(tmp_path_factory.mktemp("departments"), 2, 4, 2)
    return ["fit", *SMALL, "--model.name_or_path", micro_base, "--data", data]


def start(folder, *arguments, forked=True):
    """A command in a process of its own; its further processes are forked, or new interpreters as users have them."""
    argv = [str(argument) for argument in arguments]
    work = f"import sys, forked_rank; sys.exit(forked_rank.run({argv!r}))" if forked else argv
    return Forked(work, folder, LOCAL_RANK=None, RANK=None, WORLD_SIZE=None)


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def test_garbage_is_collected_again_after_imports_that_fail():
    with pytest.raises(ImportError, match="off"), launch.importing():
        raise ImportError("on" if gc.isenabled() else "off")
    assert gc.isenabled()
    gc.disable()
    try:
        with launch.importing():
            pass
        assert not gc.isenabled()  # whoever has turned it off wants it off
    finally:
        gc.enable()


def test_nothing_is_started_for_one_process_or_by_a_process_that_was_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a process"))
    with launch.started(1, ["fit"]):
        pass
    monkeypatch.setenv("LOCAL_RANK", "1")
    with launch.started(2, ["fit"]):
        pass


def test_port_of_the_processes_is_kept_from_other_programs_until_they_use_it(monkeypatch):
    class Started:
        def wait(self, timeout=None):
            return 0

        def kill(self):
            pass

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Started())
    for name in ("LOCAL_RANK", "SLURM_PROCID", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with launch.started(2, ["fit"]):
        port = int(os.environ["MASTER_PORT"])
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False)
        assert store.port == port
    assert "MASTER_PORT" not in os.environ


@pytest.mark.parametrize(("variables", "first"), [({}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "2"}, False)])
def test_rank_says_which_process_is_first(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.is_first() is first


@pytest.mark.slow
def test_two_processes_write_the_adapters_that_one_writes(fit, tmp_path):
    both = [start(tmp_path, *fit, "--rounds", 2, "--output", n, "--fabric.devices", n, forked=False) for n in (1, 2)]
    outputs = []
    for process in both:
        code, output = process.finish()
        assert code == 0, output
        outputs.append(output)
    one, two = (
        {
            p.relative_to(root): p.read_bytes()
            for p in sorted(root.rglob("*.safetensors"))
            if "checkpoints" not in p.parts
        }
        for root in (tmp_path / "1" / "version_0", tmp_path / "2" / "version_0")
    )
    assert len(one) == 2 * 8 + 4
    different = [str(path) for path in one if one[path] != two.get(path)]
    assert not different, "\n".join([*different, *outputs])
    assert [p.name for p in (tmp_path / "2").iterdir()] == ["version_0"]
    figures = tmp_path / "2" / "version_0" / "federated_eval.json"
    before = json.loads(figures.read_text())["mean"]["final"]["loss"]
    figures.unlink()
    code, output = start(tmp_path, "evaluate", "--run", "last", "--output", "2").finish()
    assert code == 0, output
    assert json.loads(figures.read_text())["mean"]["final"]["loss"] == pytest.approx(before, rel=1e-5)


@pytest.mark.slow
def test_bad_data_is_one_line_from_two_processes(tmp_path):
    argv = ["fit", "--data", tmp_path / "nowhere", "--output", "out", "--fabric.devices", 2]
    code, output = start(tmp_path, *argv).finish()
    assert code == 2
    lines = output.strip().splitlines()
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for child processes in /proc")
def test_a_run_that_ends_in_any_way_takes_its_processes_with_it_and_resumes(fit, tmp_path):
    def run(*arguments):
        """(first process, id of the other one) once a round is finished."""
        process = start(tmp_path, *fit, "--rounds", 500, "--output", "out", "--fabric.devices", 2, *arguments)
        process.wait_for("of 500 ·", count=2)  # titles of two rounds' tables: the first is on disk
        (other,) = children(process.pid)
        return process, other

    process, other = run()
    os.kill(other, signal.SIGKILL)
    code, output = process.finish()
    assert code == 1, output
    assert "failed: process 1 of the run is lost" in output
    assert "Traceback" not in output
    rounds = max(checkpoints(tmp_path / "out" / "version_0"))
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process, other = run("--resume", "last")
        process.send_signal(number)
        code, output = process.finish()
        assert code == expected, output
        limit = time.monotonic() + 20
        while Path(f"/proc/{other}").exists() and time.monotonic() < limit:
            time.sleep(0.1)
        assert not Path(f"/proc/{other}").exists()
        before, rounds = rounds, max(checkpoints(tmp_path / "out" / "version_0"))
        assert rounds > before
