"""``chat --run RUN --model hr``: talk to an adapter of a run in the terminal."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.errors import InputError, nearest
from fl_lightning.run_folder import CONFIG, find_run_folder
from fl_lightning.terminal import hush, quiet, take_number, take_option

USAGE = """usage: fl-lightning chat --run RUN [--model NAME] [--output DIR]
                         [--max-new-tokens N] [--temperature T] [--seed N]

  --run RUN             a run folder, or 'last' under --output (default: lightning_logs)
  --model NAME          a department (hr), a group, a client (hr/client_0), or base; the first department otherwise
  --max-new-tokens N    of an answer (default: 256)
  --temperature T       0 takes the likeliest word every time (the default); up to 2
  --seed N              of the draws (default: 0)

What is typed is the next message, /model NAME goes on with another adapter, /clear forgets what was said, /exit ends.
Where the input is no terminal, every line of it is a conversation of its own.
"""


def run(argv: list[str]) -> int:
    """Talk until the input ends."""
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    name, argv = take_option(argv, "--run")
    output, argv = take_option(argv, "--output")
    model, argv = take_option(argv, "--model")
    warmth, argv = take_option(argv, "--temperature")
    longest, argv = take_number(argv, "--max-new-tokens", 1)
    seed, argv = take_number(argv, "--seed", 0)
    if argv:
        known = [word.strip(",") for line in USAGE.splitlines() for word in line.split() if word.startswith("--")]
        raise InputError(f"chat: unknown argument {argv[0]}{nearest(argv[0], known)}")
    if name is None:
        raise InputError("chat: no --run, wanted --run RUN with a run folder or 'last'")
    folder = find_run_folder(name, Path(output or "lightning_logs"))
    temperature = _temperature(warmth)
    quiet()
    from fl_lightning.arguments import parse_config
    from fl_lightning.conversation import Conversation, talk
    from fl_lightning.run_adapters import client_adapters, shared_adapters

    hush()
    folders = shared_adapters(folder) | {name: place for name, (_, place) in client_adapters(folder).items()}
    conversation = Conversation(
        parse_config(["--config", str(folder / CONFIG)]),
        folders,
        model or next(iter(folders)),
        max_new_tokens=longest or 256,
        temperature=temperature,
        seed=seed or 0,
    )
    talk(conversation)
    return 0


def _temperature(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise InputError(f"--temperature: got {text!r}, wanted a number from 0 to 2")
    return value
