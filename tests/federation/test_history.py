import pytest

from fl_lightning.federation.history import HistoryEntry, HistoryFile, read_history


def entry(number):
    return HistoryEntry(number, [(number, {"loss": 0.1 * number})], {"Keeper": {"n": number}})


@pytest.fixture
def history(tmp_path):
    history = HistoryFile(tmp_path / "history.jsonl")
    history.replace([])
    return history


def test_entries_are_read_up_to_a_mark(history):
    marks = [history.append(entry(n).line()) for n in range(3)]
    for n, mark in enumerate(marks):
        assert read_history(history.path, mark) == [entry(k) for k in range(n + 1)]
    assert history.path.stat().st_size == marks[-1].bytes


def test_a_file_that_is_continued_gives_the_same_marks(history, tmp_path):
    marks = [history.append(entry(n).line()) for n in range(4)]
    for n in range(3):
        other = HistoryFile(tmp_path / f"other_{n}")
        other.path.write_bytes(history.path.read_bytes())
        assert other.truncate(n)
        assert other.append(entry(n + 1).line()) == marks[n + 1]
        other.replace(map(entry, range(n + 1)))
        assert other.append(entry(n + 1).line()) == marks[n + 1]


@pytest.mark.parametrize("torn", [b'{"round":2,"ro', b"\0" * 30, b"[]\n", b'{"round": 2}\n', b"[" * 100_000 + b"\n"])
def test_what_a_kill_left_behind_the_last_line_is_cut_off(history, torn):
    for n in range(2):
        mark = history.append(entry(n).line())
    with history.path.open("ab") as file:
        file.write(torn)
    assert read_history(history.path, mark) == [entry(0), entry(1)]
    assert history.truncate(1)
    assert history.path.stat().st_size == mark.bytes
    assert read_history(history.path, history.append(entry(2).line())) == [entry(0), entry(1), entry(2)]


def test_a_file_without_the_line_of_the_round_is_left_alone(history):
    assert not history.truncate(0)
    history.append(entry(0).line())
    data = history.path.read_bytes()
    assert not history.truncate(1)
    assert history.path.read_bytes() == data
    history.path.unlink()
    assert not history.truncate(0)


def test_a_number_that_json_does_not_know_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        HistoryEntry(0, [(0, {"loss": float("nan")})]).line()
