from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_notebook_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_notebook_runs_and_shows_what_it_says(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    done = client.execute()
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    printed = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in cells]
    before, after = (float(word) for word in printed[1].replace(",", "").split() if word[0].isdigit())
    assert after < before
    assert "adapters" in printed[2]
    table = cells[3].outputs[-1].data["text/plain"]
    for department in ("customer_support", "engineering", "finance", "hr"):
        assert department in table
    assert any("image/png" in output.get("data", {}) for output in cells[4].outputs)
    assert "finance/client_1" in cells[5].outputs[-1].data["text/plain"]
    assert printed[6].strip()
