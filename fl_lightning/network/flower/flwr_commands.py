"""Several commands of Flower's ``flwr`` in one process, because each process takes a second to start.

`superlink` runs this as a module. The argument is a JSON list of commands, each with ``--format json``; each prints a
JSON object to standard output.
"""

from __future__ import annotations

import json
import sys


def main(commands: list[list[str]]) -> int:
    """Run the commands up to the first that fails, and return its exit code, or 0."""
    from flwr.cli.app import app

    for command in commands:
        try:
            app(command, prog_name="flwr", standalone_mode=False)
        except SystemExit as stop:
            if stop.code:
                return stop.code if isinstance(stop.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
