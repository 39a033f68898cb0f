"""Commands and code in processes forked from one that has done the slow imports: a start takes a tenth of a second.

The imports of Lightning, transformers and PEFT take ten seconds of CPU time in every process that is started afresh.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks.systems import chaos


class Forked:
    """A process that runs ``fl_lightning`` with arguments, or Python code; its output is in `log`.

    Args:
        work: arguments of the command line, or code.
        folder: where `log` is written, and the working folder of the process.
        **environment: variables besides those of this process; None removes one.
    """

    def __init__(self, work, folder, **environment):
        self.log = Path(folder) / f"log_{time.monotonic_ns()}"
        arguments = (work if isinstance(work, str) else [str(a) for a in work], str(folder), str(self.log), environment)
        self.process = chaos.lives().Process(target=_live, args=arguments)
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text, timeout=100.0):
        """Return once the output has a text."""
        end = time.monotonic() + timeout
        while text not in self.output():
            assert self.process.is_alive() or text in self.output(), f"ended without {text!r}:\n{self.output()}"
            assert time.monotonic() < end, f"{text!r} never came:\n{self.output()}"
            time.sleep(0.02)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def finish(self, timeout=120.0):
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
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    with open(log, "a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    if isinstance(work, str):
        exec(compile(work, "<code>", "exec"), {"__name__": "__main__"})
        return
    sys.exit(main(work))
