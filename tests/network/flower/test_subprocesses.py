import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_lightning.errors import RunError
from fl_lightning.network.flower import subprocesses

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def gone(pid, timeout=5.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_child_has_a_group_a_home_and_a_log_of_its_own(tmp_path):
    script = "import os; print(os.getpgid(0) == os.getpid(), os.environ['FLWR_HOME'], os.environ['MORE'])"
    environment = subprocesses.flower_environment(tmp_path, MORE="x")
    child = subprocesses.start([sys.executable, "-c", script], environment, tmp_path / "log")
    assert child.wait(20) == 0
    assert subprocesses.last_lines(tmp_path / "log") == f"True {tmp_path} x"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_stop_takes_the_detached_ones_along(tmp_path):
    script = f"import subprocess, time; subprocess.Popen({SLEEP!r}, start_new_session=True); time.sleep(60)"
    child = subprocesses.start(
        [sys.executable, "-c", script], subprocesses.flower_environment(tmp_path), tmp_path / "log"
    )
    end = time.monotonic() + 20
    while len(subprocesses.processes_with_home(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(subprocesses.processes_with_home(tmp_path)) == 2
    subprocesses.stop(child, tmp_path)
    assert subprocesses.processes_with_home(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import pathlib, time\n"
        "from fl_lightning.network.flower import subprocesses\n"
        f"home = pathlib.Path({str(tmp_path)!r})\n"
        f"child = subprocesses.start({SLEEP!r}, subprocesses.flower_environment(home), home / 'log')\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(pid)


def test_the_last_lines_of_a_log_on_one_line(tmp_path):
    (tmp_path / "log").write_text("one\n\ntwo\n  three   four\n")
    assert subprocesses.last_lines(tmp_path / "log", count=2) == "two | three four"
    assert subprocesses.last_lines(tmp_path / "none") == ""


def test_flowers_reason_for_giving_up_is_found_in_its_log(tmp_path):
    text = "start\n\x1b[91mERROR \x1b[0m: Exit Code: 305\nFailed to connect.\n[code: 2004] No.\n\nFor more\nbye\n"
    (tmp_path / "log").write_text(text)
    assert subprocesses.exit_reason(tmp_path / "log") == "Failed to connect. [code: 2004] No."
    (tmp_path / "log").write_text("one\ntwo\n")
    assert subprocesses.exit_reason(tmp_path / "log") == "one | two"


def test_a_child_is_started_without_python_code_between_fork_and_exec(tmp_path, monkeypatch):
    popen, options = subprocess.Popen, {}

    def recorded(command, **settings):
        options.update(settings)
        return popen(command, **settings)

    monkeypatch.setattr(subprocess, "Popen", recorded)
    child = subprocesses.start([sys.executable, "-c", ""], subprocesses.flower_environment(tmp_path), tmp_path / "log")
    assert child.wait(20) == 0
    assert options.get("preexec_fn") is None  # it may deadlock in a process with threads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children at their parent's death")
def test_a_child_whose_parent_died_before_it_asked_for_the_signal_does_not_start(tmp_path):
    command = [sys.executable, "-c", subprocesses.BIND_TO_PARENT, "1", sys.executable, "-c", "print('started')"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stdout) == (1, "")


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(RunError, match="flower-nothing: expected it on the PATH"):
        subprocesses.start(["flower-nothing"], subprocesses.flower_environment(tmp_path), tmp_path / "log")


def test_a_free_port_can_be_bound_and_is_not_of_outgoing_connections():
    import socket

    port = subprocesses.free_port()
    assert port < subprocesses.EPHEMERAL_PORTS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
