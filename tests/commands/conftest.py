import logging
import os
import signal

import pytest
from report_runs import build_run, make_run
from signed_runs import copied, ledger_small, operator_key, signed_run

from fl_lightning.cli import main

__all__ = ["build_run", "command", "copied", "ledger_small", "make_run", "operator_key", "signed_run"]


@pytest.fixture
def command(capfd):
    """Run a command of the command line in this process: (exit code, stdout, stderr)."""
    names = ("fl_lightning", "lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = dict(os.environ)
    os.environ["COLUMNS"] = "160"

    def call(*argv):
        capfd.readouterr()
        code = main([str(item) for item in argv])
        return (code, *capfd.readouterr())

    yield call
    for logger, (old, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = old, propagate
        logger.setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)
