import pytest


@pytest.fixture
def config_file(tmp_path):
    """Writes a YAML file; its path comes back."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
