"""Runs commands of fl_lightning as processes forked from one that has done the slow imports.

As a program it reads JSON lines: ``{"run": arguments, "folder": …, "log": …}`` starts a process and prints its id,
``{"wait": id}`` prints its exit code, or null while it runs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time


class ForkServer:
    """A running fork server; its processes end with `close`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder, log, arguments):
        """Start a command in a folder; the id of its process comes back."""
        return self._ask({"run": arguments, "folder": str(folder), "log": str(log)})

    def wait(self, pid, timeout=0.0):
        """The exit code of a process; None if it still runs after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (code := self._ask({"wait": pid})) is None and time.monotonic() < end:
            time.sleep(0.1)
        return code

    def close(self):
        """End the server, after its processes were ended."""
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _ask(self, request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def serve():
    """Answer requests until the standard input is closed."""
    from fl_lightning.cli import main
    from fl_lightning.network.coordinator import run as _server  # noqa: F401  these are the slow imports
    from fl_lightning.network.site import run as _client  # noqa: F401

    codes = {}
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            answer = os.fork()
            if answer == 0:
                os._exit(run(main, request))
        else:
            pid = request["wait"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        print(json.dumps(answer), file=answers, flush=True)


def run(main, request):
    """One command, in the forked process."""
    os.chdir(request["folder"])
    os.environ["FL_TEST_FOLDER"] = request["folder"]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    try:
        return main(request["run"])
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):
                stream.flush()


if __name__ == "__main__":
    serve()
