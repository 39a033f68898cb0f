"""``chat --run RUN --model hr``: talk to an adapter of a run in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.signals import Stopped
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG

DESCRIPTION = """Talk to an adapter of a run.

Each line is a message. /model NAME switches to another adapter, /clear forgets the conversation, /exit ends.
If the input is not a terminal, every line is a separate conversation."""


def run(argv: list[str]) -> int:
    """Talk until the input ends."""
    args = _parser().read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    setup_logging()
    from fl_lightning.config.parsing import parse_config
    from fl_lightning.serving.chat import Conversation, talk
    from fl_lightning.storage.model_names import all_models

    silence_libraries()
    sources = all_models(folder, args.model)
    conversation = Conversation(
        parse_config(["--config", str(folder / CONFIG)]),
        sources,
        args.model or next(iter(sources)),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    try:
        talk(conversation)
    except Stopped as stop:
        stop.note = "the conversation was not saved"
        raise
    return 0


def _parser() -> Parser:
    parser = Parser("chat", DESCRIPTION)
    parser.takes_run()
    parser.add_argument("--model", metavar="NAME", help="hr, hr/client_0, hr/client_0+, base (the first department)")
    help_ = "limit of an answer (256)"
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, metavar="N", help=help_)
    help_ = "0 always takes the most likely token (default); up to 2"
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help=help_)
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the sampling (0)")
    return parser


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2, got {text!r}")
    return value
