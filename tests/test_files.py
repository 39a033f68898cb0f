import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.errors import InputError
from fl_lightning.files import (
    atomic_folder,
    check_name,
    create_run_folder,
    find_run_folder,
    natural_key,
    read_json,
    write_bytes,
    write_json,
    write_text,
)


@pytest.mark.parametrize("name", ["hr", "client_0", "a.b-c", "..a", "v1.2", "x" * 128])
def test_safe_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "a/b", "../a", "/etc", "a\\b", "a b", "a\n", "a\0", "naïve", "a|b", "a:b", "x" * 129],
)
def test_unsafe_names_are_refused_with_what_was_got_and_wanted(name):
    with pytest.raises(InputError) as caught:
        check_name(name, "department")
    assert repr(name) in str(caught.value)
    assert str(caught.value).startswith("department ")
    assert "wanted 1 to 128 letters, digits" in str(caught.value)


@given(st.text(max_size=12))
def test_an_accepted_name_stays_inside_its_folder(name):
    try:
        check_name(name)
    except InputError:
        return
    assert os.path.normpath(os.path.join("root", name)) == os.path.join("root", name)
    assert os.path.dirname(os.path.join("root", name)) == "root"


def test_natural_order_counts():
    names = ["client_10", "client_2", "client_1", "b", "a10", "a9"]
    assert sorted(names, key=natural_key) == ["a9", "a10", "b", "client_1", "client_2", "client_10"]


@given(st.lists(st.text(max_size=6), max_size=5))
def test_natural_order_does_not_depend_on_the_order_found(names):
    assert sorted(set(names), key=natural_key) == sorted(sorted(set(names), reverse=True), key=natural_key)


@pytest.mark.parametrize("name", ["²", "1²", "٣"])
def test_natural_key_takes_digits_of_other_scripts(name):
    assert sorted([name, "a"], key=natural_key)


def test_write_bytes_makes_parent_folders_and_leaves_only_the_file(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file.bin").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path / "a" / "b") == ["file.bin"]


def test_written_files_are_readable_by_others(tmp_path):
    write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_write_text_is_utf8(tmp_path):
    write_text(tmp_path / "f.txt", "θ ≤ 1")
    assert (tmp_path / "f.txt").read_bytes() == "θ ≤ 1".encode()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_write_leaves_the_old_file_whole_and_no_temporary(tmp_path, monkeypatch, call):
    path = tmp_path / "file.json"
    write_bytes(path, b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_an_interrupt_during_a_write_leaves_no_temporary(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_data_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace"]


def test_json_round_trip_keeps_order(tmp_path):
    value = {"b": 1, "a": [1.5, None, True, "θ"]}
    write_json(tmp_path / "f.json", value)
    assert read_json(tmp_path / "f.json") == value
    assert list(read_json(tmp_path / "f.json")) == ["b", "a"]


def test_json_with_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: cannot be read .*wanted a JSON file"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("data", [b'{"a": 1', b"", b"\xff\xfe", b"{'a': 1}"])
def test_read_json_names_a_broken_file(tmp_path, data):
    (tmp_path / "half.json").write_bytes(data)
    with pytest.raises(InputError, match=r"half\.json: not valid JSON"):
        read_json(tmp_path / "half.json")


def test_atomic_folder_takes_the_place_of_the_old_one(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "round_1") as folder:
            (folder / text).write_text(text)
    assert os.listdir(tmp_path) == ["round_1"]
    assert os.listdir(tmp_path / "round_1") == ["new"]


def test_atomic_folder_does_not_show_before_its_block_ends(tmp_path):
    with atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "round_1").exists()
    assert (tmp_path / "round_1" / "x").read_text() == "x"


def test_a_failing_block_leaves_the_old_folder_and_no_temporary(tmp_path):
    with atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError, match="midway"), atomic_folder(tmp_path / "round_1") as folder:  # noqa: PT012
        (folder / "x").write_text("new")
        raise RuntimeError("midway")
    assert os.listdir(tmp_path) == ["round_1"]
    assert (tmp_path / "round_1" / "x").read_text() == "old"


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_failing_rename_leaves_the_old_folder_in_place(tmp_path, monkeypatch, failing_call):
    with atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("old")
    replace, calls = os.replace, []

    def fail_at(source, target):
        calls.append(source)
        if len(calls) == failing_call:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("new")
    monkeypatch.undo()
    assert (tmp_path / "round_1" / "x").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_run_folders_count_from_zero(tmp_path):
    root = tmp_path / "logs"
    assert [create_run_folder(root).name for _ in range(3)] == ["version_0", "version_1", "version_2"]


def test_run_folder_is_one_above_the_highest_not_the_first_gap(tmp_path):
    for name in ("version_2", "version_10", "version_x", "other_99", "version_11_old"):
        (tmp_path / name).mkdir()
    assert create_run_folder(tmp_path).name == "version_11"


def test_a_file_called_version_n_is_not_overwritten(tmp_path):
    (tmp_path / "version_0").write_text("a file")
    assert create_run_folder(tmp_path).name == "version_1"


def test_parallel_runs_get_folders_of_their_own(tmp_path):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(create_run_folder(tmp_path).name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == [f"version_{i}" for i in range(8)]


def test_an_output_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(InputError, match="output: cannot create a run folder in .*logs"):
        create_run_folder(tmp_path / "logs")


def make_run(root, name):
    (root / name).mkdir(parents=True)
    (root / name / "config.yaml").write_text("seed: 1\n")
    return root / name


def test_last_is_the_highest_number_not_the_last_in_the_alphabet(tmp_path):
    for name in ("version_2", "version_10", "version_9"):
        make_run(tmp_path, name)
    (tmp_path / "version_99").write_text("a file")
    assert find_run_folder("last", tmp_path) == tmp_path / "version_10"


def test_last_without_runs_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="run 'last': no version_N folder in .*run 'fit' first"):
        find_run_folder("last", tmp_path)


def test_a_run_is_found_by_path_and_by_name_under_the_root(tmp_path):
    folder = make_run(tmp_path, "version_3")
    assert find_run_folder(str(folder), tmp_path / "elsewhere") == folder
    assert find_run_folder("version_3", tmp_path) == folder


def test_a_folder_without_config_is_not_a_run(tmp_path):
    (tmp_path / "version_0").mkdir()
    with pytest.raises(InputError, match="no config.yaml there; wanted a run folder"):
        find_run_folder(str(tmp_path / "version_0"), tmp_path)
