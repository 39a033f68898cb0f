import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.forgotten import check_not_forgotten, mark_forgotten, read_forgotten


def test_a_run_is_used_until_it_is_marked(tmp_path):
    run = tmp_path / "version_0"
    run.mkdir()
    check_not_forgotten(run)
    assert read_forgotten(run) is None
    mark_forgotten(run, {"new_run": "version_1", "purged": False})
    with pytest.raises(InputError, match=r"version_0: .* taken out .*; use .*version_1"):
        check_not_forgotten(run)
    assert read_forgotten(run) == {"new_run": "version_1", "purged": False}


@pytest.mark.parametrize("text", ["", "[]", "{", "7"])
def test_a_damaged_mark_is_a_mark(tmp_path, text):
    (tmp_path / "FORGOTTEN.json").write_text(text)
    assert read_forgotten(tmp_path) == {}
    with pytest.raises(InputError, match="use the run that forget has made"):
        check_not_forgotten(tmp_path)


def test_a_link_to_nowhere_is_a_mark(tmp_path):
    (tmp_path / "FORGOTTEN.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError):
        check_not_forgotten(tmp_path)
