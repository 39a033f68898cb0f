import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.errors import InputError
from fl_lightning.storage.files import (
    atomic_folder,
    check_name,
    check_secret,
    natural_key,
    read_json,
    read_text,
    remove_temporaries,
    share_files,
    write_bytes,
    write_json,
    write_secret,
    write_text,
)


@pytest.mark.parametrize("name", ["hr", "client_0", "a.b-c", "..a", "v1.2", "x" * 128])
def test_safe_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "a/b", "../a", "/etc", "a\\b", "a b", "a\n", "a\0", "naïve", "a|b", "a:b", "x" * 129],
)
def test_unsafe_names_are_refused_and_shown(name):
    with pytest.raises(InputError) as caught:
        check_name(name, "department")
    assert repr(name) in str(caught.value)
    assert str(caught.value).startswith("department ")
    assert "expected 1 to 128 letters, digits" in str(caught.value)


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


@pytest.fixture(params=[0o077, 0o002, 0o022], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_files_and_folders_have_the_mode_that_the_umask_asks_for(tmp_path, umask):
    write_bytes(tmp_path / "a" / "file", b"old")
    write_bytes(tmp_path / "a" / "file", b"new")
    with atomic_folder(tmp_path / "round_1") as folder:
        write_text(folder / "inner" / "x", "x")
    for path in (tmp_path / "a", tmp_path / "round_1", tmp_path / "round_1" / "inner"):
        assert mode(path) == 0o777 & ~umask
    for path in (tmp_path / "a" / "file", tmp_path / "round_1" / "inner" / "x"):
        assert mode(path) == 0o666 & ~umask


def test_files_that_a_library_made_private_are_shared_as_the_umask_asks(tmp_path, umask):
    with atomic_folder(tmp_path / "merged") as folder:
        write_bytes(folder / "inner" / "model", b"x", secret=True)
        share_files(folder)
    assert mode(tmp_path / "merged" / "inner") == 0o777 & ~umask
    assert mode(tmp_path / "merged" / "inner" / "model") == 0o666 & ~umask


def test_secrets_are_their_owners_alone_whatever_the_umask_is(tmp_path, umask):
    write_secret(tmp_path / "a" / "b" / "key", b"1")
    write_bytes(tmp_path / "c" / "key", b"old")
    write_bytes(tmp_path / "c" / "key", b"2", secret=True)
    with atomic_folder(tmp_path / "sites", secret=True) as folder:
        write_secret(folder / "key", b"3")
    assert [mode(tmp_path / name) for name in ("a/b/key", "c/key", "sites/key")] == [0o600] * 3
    assert [mode(tmp_path / name) for name in ("a", "a/b", "sites")] == [0o700] * 3
    assert [(tmp_path / name).read_bytes() for name in ("a/b/key", "c/key", "sites/key")] == [b"1", b"2", b"3"]


def test_a_secret_is_never_replaced_nor_seen_half_written(tmp_path, monkeypatch):
    write_secret(tmp_path / "key", b"first")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("before the bytes are on the disk"))
    with pytest.raises(BaseException, match="before the bytes"):
        write_secret(tmp_path / "other", b"x")
    assert os.listdir(tmp_path) == ["key"]


def test_a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(InputError, match="key: cannot be read"):
        check_secret(path)
    write_secret(path, b"x")
    check_secret(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match=rf"--key: others may read it; expected mode 0600, got 0640; .*600 {path}"):
        check_secret(path, name="--key")
    with pytest.raises(InputError, match="not a regular file"):
        check_secret(tmp_path)


def test_text_is_read_without_its_byte_order_mark(tmp_path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfa\xcf\x80")
    assert read_text(tmp_path / "f", "a text") == "aπ"


def test_a_file_that_cannot_be_read_as_text_is_named_with_the_reason(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"na\xefve")
    reasons = {
        "gone": r"cannot be read \(No such file or directory\); expected a poem",
        "fifo": r"cannot be read \(not a regular file\); expected a poem",
        "latin": r"not UTF-8 \(byte 2\); save the file as UTF-8",
        "x" * 300: r"cannot be read \(File name too long\); expected a poem",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=rf"{name}: {reason}$"):
            read_text(tmp_path / name, "a poem")
    with pytest.raises(InputError, match=r"^--poem: cannot be read"):
        read_text(tmp_path / "gone", "a poem", name="--poem")


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
    assert calls == ["fsync", "replace", "fsync"]


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
    with pytest.raises(InputError, match=r"gone\.json: cannot be read .*expected a JSON file"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("data", [b'{"a": 1', b"", b"{'a': 1}", b"[" * 100_000])
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


def test_a_failing_rename_leaves_the_old_folder_in_place(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("new")
    monkeypatch.undo()
    assert (tmp_path / "round_1" / "x").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_folder_that_is_replaced_is_there_all_the_time(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "hr") as folder:
        (folder / "x").write_text("old")
    replace, seen = os.replace, []

    def watch(source, target):
        seen.append((tmp_path / "hr" / "x").read_text())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with atomic_folder(tmp_path / "hr") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "y").write_text("y")
        (folder / "x").write_text("new")
    assert seen == ["old", "old"]
    assert (tmp_path / "hr" / "x").read_text() == "new"
    assert (tmp_path / "hr" / "inner" / "y").read_text() == "y"


def test_files_of_a_folder_are_on_the_disk_before_it_has_its_name_and_the_name_before_the_block_is_left(
    tmp_path, monkeypatch
):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(os.readlink(f"/proc/self/fd/{h}")), fsync(h)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    with atomic_folder(tmp_path / "round_1") as folder:
        (folder / "x").write_text("x")
        temporary = str(folder)
    assert done == [f"{temporary}/x", temporary, "rename", str(tmp_path)]


def test_remove_temporaries_takes_what_a_killed_process_left_and_nothing_else(tmp_path):
    keep = [tmp_path / "a.json", tmp_path / "a" / "b.tmp", tmp_path / ".lock"]
    gone = [tmp_path / ".a.json.x1.tmp", tmp_path / "a" / ".round_1.y2.tmp" / "state.json"]
    for path in keep + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    remove_temporaries(tmp_path)
    assert all(path.exists() for path in keep)
    assert not any(path.exists() for path in gone)
    assert sorted(os.listdir(tmp_path / "a")) == ["b.tmp"]
