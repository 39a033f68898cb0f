"""Commands and code in processes forked from one that has done the slow imports: a start takes a tenth of a second.

The imports of Lightning, transformers and PEFT take ten seconds of CPU time in every new process.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks.systems import chaos


class Forked:
    """A process that runs ``fl_lightning`` with arguments, or Python code; its output is appended to `log`.

    Args:
        work: arguments of the command line, or code.
        folder: the working folder of the process.
        log: where its output goes; a new file in `folder` by default.
        **environment: variables besides those of this process; None removes one.
    """

    def __init__(self, work, folder, log=None, **environment):
        self.log = Path(log or Path(folder) / f"log_{time.monotonic_ns()}")
        work = work if isinstance(work, str) else [str(argument) for argument in work]
        self.process = chaos.lives().Process(target=_live, args=(work, str(folder), str(self.log), environment))
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text, timeout=300.0, count=1):
        """Return once the output has a text so many times."""
        end = time.monotonic() + timeout
        while self.output().count(text) < count:
            ended = not self.process.is_alive()  # asked first: what it wrote last is in the output then
            assert not ended or self.output().count(text) >= count, f"ended without {text!r}:\n{self.output()[-3000:]}"
            assert time.monotonic() < end, f"{text!r} never came:\n{self.output()[-3000:]}"
            time.sleep(0.02)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def finish(self, timeout=300.0):
        """(exit code, output); a process that hangs is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.join()
        return self.process.exitcode, self.output()


def _live(work, folder, log, environment):
    import sys

    import torch
    import transformers

    from fl_lightning.cli import main

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # the command line does it by a variable, before it is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the fork server ignores
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    with open(log, "a") as file, open(os.devnull) as nothing:
        for source, number in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source.fileno(), number)
    if isinstance(work, str):
        exec(compile(work, "<code>", "exec"), {"__name__": "__main__"})
        return
    sys.exit(main(work))
