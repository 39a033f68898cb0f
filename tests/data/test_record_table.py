import json

import pytest

from fl_lightning.data.client_data import load_clients
from fl_lightning.data.inspection.checks import inspect_folder
from fl_lightning.data.layout import find_client, find_clients
from fl_lightning.errors import InputError


@pytest.fixture
def rows():
    """Three records for each of four clients, those of a client not together."""
    clients = [("it", "c10"), ("hr", "ann"), ("it", "c2"), ("hr", "7")]
    return [
        {"department": d, "client": c, "prompt": f"{n} of {c}", "completion": f"{d} {n}"}
        for n in range(3)
        for d, c in clients
    ]


@pytest.fixture
def lines(tmp_path, rows):
    path = tmp_path / "all.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_clients_are_those_of_a_folder_with_the_same_records(tmp_path, lines, rows, write_jsonl, tokenizer):
    for department, client in {(row["department"], row["client"]) for row in rows}:
        own = [row for row in rows if (row["department"], row["client"]) == (department, client)]
        records = [{name: row[name] for name in ("prompt", "completion")} for row in own]
        write_jsonl(tmp_path / "folder" / department / f"{client}.jsonl", records)
    table, folder = load_clients(lines, tokenizer, seed=3), load_clients(tmp_path / "folder", tokenizer, seed=3)
    assert list(table) == list(folder) == ["hr/7", "hr/ann", "it/c2", "it/c10"]
    for client_id, client in folder.items():
        for split in ("train", "eval"):
            wanted = [e.ids.tolist() for e in getattr(client, split)]
            assert [e.ids.tolist() for e in getattr(table[client_id], split)] == wanted


def test_one_client_a_department_and_the_first_of_each_are_found(lines):
    assert find_client(lines, "it/c10").client_id == "it/c10"
    assert [c.client_id for c in find_clients(lines, department="hr")["hr"]] == ["hr/7", "hr/ann"]
    assert [c.client_id for c in find_clients(lines, 1)["it"]] == ["it/c2"]
    with pytest.raises(InputError, match="expected a client of .*got 'it/c11'; did you mean 'it/c10'"):
        find_client(lines, "it/c11")
    with pytest.raises(InputError, match="department: expected one of .*got 'law'"):
        find_clients(lines, department="law")


def test_other_columns_are_named_in_the_config(lines, rows):
    text = lines.read_text().replace('"department"', '"team"').replace('"client"', '"user"')
    lines.write_text(text)
    with pytest.raises(InputError, match=r"all.jsonl:1: department: expected a name, got None; data.columns names"):
        find_clients(lines)
    (client,) = [c for c in find_clients(lines, columns=("team", "user"))["hr"] if c.client == "ann"]
    assert [record[0].content for record in client.training_records()] == ["0 of ann", "1 of ann", "2 of ann"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"department": "hr", "client": "../x"}', r"all.jsonl:24: client '../x': expected 1 to 128 letters"),
        ('{"department": "hr", "client"', r"all.jsonl:24: not valid JSON"),
        ("[1]", r"all.jsonl:24: expected an object, got list"),
        ('{"department": "base", "client": "a"}', r"expected another name than 'base'"),
    ],
)
def test_a_row_that_cannot_be_assigned_is_named(lines, line, message):
    lines.write_text(lines.read_text() + line)
    with pytest.raises(InputError, match=message):
        find_clients(lines)


def test_a_row_that_is_no_record_is_named_with_its_line(lines, tokenizer):
    lines.write_text(lines.read_text() + '{"department": "hr", "client": "ann", "prompt": "?"}')
    with pytest.raises(InputError, match=r"all.jsonl:24: "):
        load_clients(lines, tokenizer)


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_parquet_and_data_sets_on_disk_have_the_records_of_the_lines(lines, rows, form, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = datasets.Dataset.from_list(rows)
    if form == "disk":
        dataset = dataset.class_encode_column("department")  # numbers, with names beside them
        dataset.save_to_disk(tmp_path / "set")
    else:
        dataset.to_parquet(tmp_path / "all.parquet")
    root = tmp_path / {"parquet": "all.parquet", "disk": "set"}[form]
    wanted, got = find_clients(lines), find_clients(root)
    assert {d: [c.client_id for c in cs] for d, cs in got.items()} == {
        d: [c.client_id for c in cs] for d, cs in wanted.items()
    }
    for department, clients in wanted.items():
        for ours, theirs in zip(clients, got[department], strict=True):
            assert theirs.training_records() == ours.training_records()
    assert len({b"".join(map(bytes, filter(None, c.contents()))) for cs in got.values() for c in cs}) == 4


def test_an_inspection_finds_all_bad_rows_at_once(lines):
    more = ['{"department": "hr", "client": "ann", "prompt": "?"}', '{"department": "it", "client": "c2", "text": 1}']
    lines.write_text("\n".join([lines.read_text().rstrip(), *more]))
    found = inspect_folder(lines, lambda record, where: (3, 1))
    assert [(c.client_id, c.train, c.eval) for c in found.clients][:2] == [("hr/7", 2, 1), ("hr/ann", 2, 1)]
    assert [error.partition(": ")[0].rpartition(":")[2] for error in found.errors] == ["24", "25"]


def test_other_files_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "all.csv").write_text("department,client\n")
    with pytest.raises(InputError, match="got .*all.csv; the command partition makes a folder"):
        find_clients(tmp_path / "all.csv")
    (tmp_path / "all.parquet").write_text("no")
    with pytest.raises(InputError, match=r"all.parquet: cannot be read|needs the library datasets"):
        find_clients(tmp_path / "all.parquet")
