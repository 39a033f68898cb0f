import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_lightning.config.parsing import SHORTCUTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(SNIPPETS)))
def test_python_in_the_readme_runs(number, tmp_path):
    run(SNIPPETS[number], tmp_path)


@pytest.mark.slow
def test_adapter_of_a_run_is_used_as_the_readme_says(tmp_path):
    small = ["--rounds", "1", "--clients-per-dept", "1", "--max-records", "2"]
    run(f"import sys; from fl_lightning.cli import main; sys.exit(main(['fit', *{small}]))", tmp_path)
    assert "lightning_logs/version_0/adapters/hr" in SNIPPETS[0]
    run(SNIPPETS[0] + "\nassert model.peft_config['default'].r == 8", tmp_path)


def test_readme_names_every_short_flag():
    assert [flag for flag in SHORTCUTS if flag not in README] == []


def test_files_that_the_readme_names_are_there():
    named = set(re.findall(r"`((?:configs|docs|fl_lightning)/[\w./-]+)`", README))
    assert len(named) >= 6
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
