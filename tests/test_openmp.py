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
    assert python(say).strip() == "GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=1 (short waits, so that other programs can run)"
    assert python(say, OMP_WAIT_POLICY="passive").strip() == "OMP_WAIT_POLICY=passive (set by you)"
    late = python(f"import sys; sys.modules['torch'] = sys; {say}").strip()
    assert late.endswith("(without effect here: torch was imported before fl_lightning)")
