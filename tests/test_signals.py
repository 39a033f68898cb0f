import os
import signal
import subprocess
import sys

import pytest

from fl_lightning import signals


@pytest.fixture(autouse=True)
def _handlers():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signals.install()
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_outside_a_run_stops_at_once(number):
    with pytest.raises(signals.Stopped) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.number == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_run_waits_for_the_next_check(number):
    reached = False
    with pytest.raises(signals.Stopped) as caught, signals.at_safe_points():  # noqa: PT012
        os.kill(os.getpid(), number)
        reached = True
        signals.check()
    assert reached
    assert caught.value.number == number


TWICE = """
import os, signal
from fl_lightning import signals
signals.install()
try:
    with signals.at_safe_points():
        os.kill(os.getpid(), {first})
        {between}
        os.kill(os.getpid(), {second})
        print("reached")
finally:
    os.kill(os.getpid(), {second})  # the way out, which may take its time
    print("reached")
"""


@pytest.mark.parametrize("between", ["pass", "signals.check()"], ids=["before the safe point", "on the way out"])
@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGINT", 130), ("SIGINT", "SIGTERM", 143)])
def test_second_signal_stops_the_process_at_once(between, first, second, code):
    text = TWICE.format(first=f"signal.{first}", second=f"signal.{second}", between=between)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "stopped at once\n")


def test_check_without_a_signal_goes_on_and_a_request_is_used_up_once():
    with signals.at_safe_points():
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.Stopped):
            signals.check()
        signals.check()


def test_request_does_not_outlive_its_run():
    with signals.at_safe_points():
        os.kill(os.getpid(), signal.SIGINT)
    signals.check()
    signals.install()
    with pytest.raises(signals.Stopped):
        os.kill(os.getpid(), signal.SIGINT)
