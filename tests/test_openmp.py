import os
import re
import subprocess
import sys

import pytest

from fl_lightning import openmp

PRINT = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


def python(code, **variables):
    """What a fresh interpreter prints, whose environment says nothing about waiting but `variables`."""
    env = {k: v for k, v in os.environ.items() if k not in openmp.VARIABLES} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


def test_importing_the_package_sets_a_short_wait():
    assert python(f"import fl_lightning; {PRINT}").split() == ["1000", "1"]


def test_torch_waits_as_set_in_the_command_and_in_the_processes_that_it_starts():
    code = """
import multiprocessing, subprocess, sys
from fl_lightning import cli
if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    import torch
"""
    printed = python(code, OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in printed:
        pytest.skip("torch here is not built with libgomp")
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", printed)) == {"1000"}
    assert len(re.findall("GOMP_SPINCOUNT", printed)) >= 2


@pytest.mark.parametrize(
    ("variable", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active"), ("KMP_BLOCKTIME", "200")]
)
def test_what_the_user_has_set_stays_and_nothing_is_added(variable, value):
    printed = python(f"import fl_lightning; {PRINT}", **{variable: value}).split()
    expected = {"GOMP_SPINCOUNT": "None", "KMP_BLOCKTIME": "None", variable: value}
    assert printed == [expected["GOMP_SPINCOUNT"], expected["KMP_BLOCKTIME"]]


def test_description_names_who_has_set_what():
    say = "from fl_lightning import openmp; print(openmp.describe())"
    assert python(say).startswith("GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=1 (short waits, so that other programs can run;")
    assert python(say, OMP_WAIT_POLICY="passive").strip() == "OMP_WAIT_POLICY=passive (set by you)"
    late = python(f"import sys; sys.modules['torch'] = sys; {say}").strip()
    assert late.endswith("(without effect here: torch was imported before fl_lightning)")


needs_linux = pytest.mark.skipif(
    not os.path.exists("/proc/self/schedstat") or len(os.sched_getaffinity(0)) < 2, reason="Linux with two cores"
)
LONG = """
import os, time
os.environ["OMP_NUM_THREADS"] = "2"
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from fl_lightning import openmp
openmp.spin_while_alone()
import torch, threading
numbers = torch.ones(2**17)
def spun():  # CPU seconds of the second thread for a second of short products with pauses
    start = time.process_time()
    for _ in range(200):
        numbers.add_(1)
        time.sleep(0.005)
    return time.process_time() - start
def names():
    return [thread.name for thread in threading.enumerate()]
"""


@needs_linux
def test_a_command_that_trains_spins_and_its_children_do_not():
    printed = python(LONG + PRINT, OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in printed:
        pytest.skip("torch here is not built with libgomp")
    assert re.findall(r"GOMP_SPINCOUNT = '(\w+)'", printed) == ["300000"]
    assert printed.split("\n")[0].split() == ["1000", "1"]


@needs_linux
@pytest.mark.parametrize("variables", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}])
def test_a_users_choice_holds_in_a_command_that_trains(variables):
    assert "thread waits" not in python(LONG + "print(names())", **variables)


@needs_linux
def test_sleeping_threads_make_libgomp_wait_shortly_and_their_end_makes_it_spin_again():
    code = """
openmp.BUSY = 1e9  # whatever else runs here
short = openmp.ShortWaits(2, 2)
print(spun())
short.start()
time.sleep(0.1)
print(spun())
short.stop()
time.sleep(0.1)
print(spun())
"""
    long, short, long_again = map(float, python(LONG + code).split("\n")[:3])
    assert short < 0.5 * min(long, long_again)


@needs_linux
def test_waits_get_short_while_others_want_the_cores_and_long_again_after_them():
    code = """
import subprocess, sys
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        numbers.add_(1)
    return condition()
print(until(lambda: "short waits" in names()))
for other in others:
    other.kill()
    other.wait()
openmp.BUSY = openmp.CALM = 1e9  # whatever else runs here is calm
print(until(lambda: "short waits" not in names()))
"""
    assert python(LONG + code).split("\n")[:2] == ["True", "True"]


@pytest.mark.parametrize(("team", "cores", "owners"), [(2, 2, 1), (16, 16, 1), (8, 16, 2), (2, 4, 3), (4, 2, 0)])
def test_so_many_threads_own_teams_that_there_are_more_threads_than_cores(team, cores, owners):
    assert openmp.ShortWaits(team, cores).owners == owners
    assert team + owners * (team - 1) > cores
