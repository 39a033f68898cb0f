"""``chat --run RUN --model hr``: talk to an adapter of a run in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.console import hush, quiet
from fl_lightning.signals import Stopped
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG

DESCRIPTION = """Talk to an adapter of a run.

What is typed is the next message, /model NAME goes on with another adapter, /clear forgets what was said, /exit ends.
Where the input is no terminal, every line of it is a conversation of its own."""


def run(argv: list[str]) -> int:
    """Talk until the input ends."""
    given = _parser().read(argv)
    folder = find_run_folder(given.run, Path(given.output))
    quiet()
    from fl_lightning.config.parsing import parse_config
    from fl_lightning.serving.chat import Conversation, talk
    from fl_lightning.storage.run_adapters import all_adapters

    hush()
    folders = all_adapters(folder)
    conversation = Conversation(
        parse_config(["--config", str(folder / CONFIG)]),
        folders,
        given.model or next(iter(folders)),
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        seed=given.seed,
    )
    try:
        talk(conversation)
    except Stopped as stop:
        stop.note = "what was said is kept nowhere"
        raise
    return 0


def _parser() -> Parser:
    parser = Parser("chat", DESCRIPTION)
    parser.takes_run()
    parser.add_argument("--model", metavar="NAME", help="hr, hr/client_0, base (the first department)")
    help_ = "of an answer (256)"
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, metavar="N", help=help_)
    help_ = "0 takes the likeliest token every time (the default); up to 2"
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help=help_)
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the draws (0)")
    return parser


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number from 0 to 2")
    return value
