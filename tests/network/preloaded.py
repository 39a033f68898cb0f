"""Runs many commands of fl_lightning as processes forked from one that has done the slow imports: what a test saves.

The argument is a JSON list of [log file, arguments…]; {log file: exit code} is printed at the end. The first one is the
server; the others start once it listens, or else each SuperNode would be turned away and start twice.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(commands):
    from fl_lightning.cli import main as run

    children = {}
    for log, *arguments in commands:
        if children:
            wait_for(commands[0][0], "listening on")
        if (pid := os.fork()) == 0:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(handle, number)
            os._exit(run_and_flush(run, arguments))
        children[pid] = log
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in children])
    codes = {}
    while len(codes) < len(children):
        pid, status = os.wait()
        codes[children[pid]] = os.waitstatus_to_exitcode(status)
    print(json.dumps(codes))


def wait_for(log, text, timeout=120.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end and not (Path(log).exists() and text in Path(log).read_text(errors="replace")):
        time.sleep(0.1)


def run_and_flush(run, arguments):
    try:
        return run(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
