"""The tests that docs/threat-model.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_named_test_exists():
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 30
    assert len(named) == text.count("`tests/")
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in _source(ROOT / path)]
    assert missing == []


def _source(path):
    return path.read_text(encoding="utf-8") if path.is_file() else ""
