"""The commands of the docs that make, check and list data, configs and runs, exactly as they are written there."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("init", "doctor", "inspect", "partition", "runs")


def commands():
    """[arguments] of each command in the pages, in their order."""
    pages = [ROOT / "docs" / f"{name}.md" for name in ("data", "configuration", "runs")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    found = re.findall(r"python -m fl_lightning ([^`\n]+)", text)
    return [shlex.split(line) for line in found if line.split()[0] in COMMANDS]


@pytest.mark.slow
def test_each_runs_and_partition_feeds_inspect(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "lightning_logs").mkdir()
    rows = [{"question": f"q{i}", "answer": f"a{i}", "area": f"area {i % 3}"} for i in range(240)]
    (tmp_path / "pile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = commands()
    assert {argv[0] for argv in given} == set(COMMANDS)
    for argv in given:
        code, _, errors = command(*argv)
        assert code == 0, (argv, errors)
    assert sorted(path.name for path in (tmp_path / "my_data").iterdir() if path.is_dir()) == [
        "area_0",
        "area_1",
        "area_2",
    ]
    assert (tmp_path / "skewed" / "partition.png").is_file()
    assert (tmp_path / "my.yaml").is_file()
