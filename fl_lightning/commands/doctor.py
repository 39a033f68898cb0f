"""``doctor [--config FILE]``: what a run of a config would meet on this machine."""

from __future__ import annotations

import json

from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries

DESCRIPTION = """Print versions, device, precision, free disk, and whether a config's base, adapters and activations
will fit into memory. Nothing is loaded, downloaded or written.

The estimate is of the most a process will want: records as long as data.max_length, half of their tokens responses."""


def run(argv: list[str]) -> int:
    """Look at this machine."""
    parser = Parser("doctor", DESCRIPTION)
    parser.add_argument("--config", metavar="FILE", help="of the run in question (default: the defaults)")
    parser.add_argument("--json", action="store_true", help="everything, in bytes, as JSON")
    args = parser.read(argv)
    config = parse_config(["--config", args.config] if args.config else [])
    setup_logging()
    from rich.console import Console

    from fl_lightning.runs import diagnosis

    silence_libraries()
    with Console(stderr=True).status("looking at this machine"):
        found = diagnosis.diagnose(config)
    if args.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        diagnosis.show(found, Console())
    return 0
