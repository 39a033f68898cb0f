"""Versions of the libraries: the tested ones, and what differs from them.

    python .ci/versions.py tested > constraints.txt     versions in this environment
    python .ci/versions.py drift                        versions in this environment that are not in constraints.txt

torch is left out: which build is right depends on the machine.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
LEFT_OUT = re.compile(r"(fl-lightning|pip|setuptools|uv|torch|triton|nvidia-.*|cuda-.*)$")
HEADER = "# Versions that everything was tested with, on Python 3.11: python .ci/versions.py tested > constraints.txt"


def installed() -> dict[str, str]:
    """{name: version} of the distributions in this environment, sorted."""
    versions = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in distributions()}
    return {name: versions[name] for name in sorted(versions) if not LEFT_OUT.match(name)}


def tested() -> dict[str, str]:
    """{name: version} in constraints.txt."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def main(command: str) -> None:
    """Print what the command asks for."""
    if command == "tested":
        print(HEADER, *(f"{name}=={version}" for name, version in installed().items()), sep="\n")
        return
    before = tested()
    changed = {name: version for name, version in installed().items() if before.get(name) != version}
    print(f"{len(changed)} of {len(installed())} libraries differ from constraints.txt:")
    for name, version in changed.items():
        print(f"  {name} {before.get(name, 'absent')} → {version}")


if __name__ == "__main__":
    if sys.argv[1:] not in (["tested"], ["drift"]):
        raise SystemExit(__doc__)
    main(sys.argv[1])
