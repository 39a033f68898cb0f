import json
import os

import datasets
import pytest

from fl_lightning.data.partition.reader import column_names, read_rows
from fl_lightning.errors import InputError

ROWS = [{"q": "a, b", "n": 1}, {"q": "ü\u2028c", "n": 2}]


def values(rows):
    return [dict(row.values) for row in rows]


def test_jsonl_gives_rows_and_their_lines(tmp_path):
    path = tmp_path / "pile.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "", json.dumps(ROWS[1], ensure_ascii=False), ""]), encoding="utf-8")
    rows = read_rows(str(path))
    assert values(rows) == ROWS
    assert [row.location for row in rows] == [f"{path}:1", f"{path}:3"]


def test_json_list_gives_rows(tmp_path):
    path = tmp_path / "pile.json"
    path.write_text(json.dumps(ROWS))
    assert values(read_rows(str(path))) == ROWS


@pytest.mark.parametrize(("name", "separator"), [("pile.csv", ","), ("pile.tsv", "\t")])
def test_csv_gives_text_with_quoted_separators_and_line_ends(tmp_path, name, separator):
    path = tmp_path / name
    path.write_text(f'q{separator}n\n"a{separator} ""b""\nc"{separator}007\n\nd{separator}2\n')
    rows = read_rows(str(path))
    assert values(rows) == [{"q": f'a{separator} "b"\nc', "n": "007"}, {"q": "d", "n": "2"}]
    assert rows[1].location == f"{path}:5"


def test_parquet_gives_rows(tmp_path):
    path = tmp_path / "pile.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    assert values(read_rows(str(path))) == ROWS


def test_data_set_on_disk_gives_class_names_for_class_numbers(tmp_path):
    features = datasets.Features({"q": datasets.Value("string"), "kind": datasets.ClassLabel(names=["bill", "card"])})
    datasets.Dataset.from_dict({"q": ["a", "b"], "kind": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    assert values(read_rows(str(tmp_path / "saved"))) == [{"q": "a", "kind": "card"}, {"q": "b", "kind": "bill"}]


def test_split_is_train_or_the_one_that_is_named(tmp_path):
    one, two = datasets.Dataset.from_list(ROWS[:1]), datasets.Dataset.from_list(ROWS[1:])
    datasets.DatasetDict({"test": one, "train": two}).save_to_disk(tmp_path / "saved")
    assert values(read_rows(str(tmp_path / "saved"))) == ROWS[1:]
    assert values(read_rows(str(tmp_path / "saved"), "test")) == ROWS[:1]
    with pytest.raises(InputError, match="--split: expected one of test, train, got tst"):
        read_rows(str(tmp_path / "saved"), "tst")


def test_folder_of_files_is_a_data_set_too(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert values(read_rows(str(tmp_path))) == ROWS


def test_columns_are_those_of_all_rows(tmp_path):
    path = tmp_path / "pile.jsonl"
    path.write_text('{"a": 1}\n{"b": 2, "a": 3}\n')
    assert column_names(read_rows(str(path))) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected an object with the columns as keys, got list"),
        ("a.jsonl", "\n", "expected at least two records, got none"),
        ("a.json", '{"a": 1}', "expected a list of records, got dict"),
        ("a.json", "[1]", "record 0: expected an object with the columns as keys, got int"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: expected 2 cells"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2: expected 2 cells"),
        ("a.csv", "a\n1\n\xff", None),
        ("a.parquet", "no", "not a Parquet file"),
        ("a.txt", "a", "expected one of the endings .jsonl"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1") if words is None else content.encode())
    with pytest.raises(InputError) as error:
        read_rows(str(path))
    assert str(path) in str(error.value)
    assert (words or "not UTF-8 (byte 4)") in str(error.value)


def test_missing_sources_say_what_would_do(tmp_path, monkeypatch):
    for name in (str(tmp_path / "no"), "no.jsonl", "a/b/c"):
        with pytest.raises(InputError, match="does not exist; expected a file"):
            read_rows(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nobody/nothing: cannot be loaded \(HF_HUB_OFFLINE=1\)"):
        read_rows("nobody/nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be loaded; expected a file"):
        read_rows("./folder")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="not a regular file"):
        read_rows(str(tmp_path / "pipe.jsonl"))
