import json
import os
import stat

import numpy as np
import pytest

from fl_lightning.data import record_table
from fl_lightning.data.client_data import load_clients
from fl_lightning.data.layout import find_clients
from fl_lightning.data.table_index import IndexStore, TableIndex
from fl_lightning.data.table_rows import JsonLines
from fl_lightning.errors import InputError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tables of any size are many clients' and large."""
    monkeypatch.setattr(record_table, "LAZY_ABOVE", 2)
    monkeypatch.setattr(record_table, "MIN_BYTES", 1)


@pytest.fixture
def table(tmp_path):
    """Three clients of two departments, whose rows are not together, a blank line among them."""
    owners = [("it", "c10"), ("hr", "Zoe"), ("it", "c2"), ("hr", "Zoe"), ("it", "c10")]
    rows = [json.dumps({"department": d, "client": c, "text": f"{n}"}) for n, (d, c) in enumerate(owners)]
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join([*rows[:2], "", *rows[2:]]) + "\n")
    return path


@pytest.fixture
def parses(monkeypatch):
    """The paths of tables that are read for their columns."""
    read, owners = [], JsonLines.owners
    monkeypatch.setattr(JsonLines, "owners", lambda self, columns: (read.append(self._path), owners(self, columns))[1])
    return read


def listed(path, store, **options):
    return [
        (c.client_id, c.contents(), [location for location, _ in c.scan()])
        for clients in find_clients(path, store=store, **options).values()
        for c in clients
    ]


def test_a_kept_list_is_that_of_the_file_and_is_not_read_again(tmp_path, table, parses):
    wanted = listed(table, None)
    assert [c for c, _, _ in wanted] == ["hr/Zoe", "it/c2", "it/c10"]
    assert wanted[2][2] == [f"{table}:1", f"{table}:6"]  # the third line is blank
    folder = tmp_path / "cache" / "tokens"
    assert listed(table, IndexStore(folder)) == wanted
    assert len(parses) == 2
    assert listed(table, IndexStore(folder)) == wanted
    assert len(parses) == 2
    assert stat.S_IMODE(os.stat(folder / "tables.bin").st_mode) == 0o600


def test_a_file_that_is_elsewhere_is_known_and_a_changed_one_is_read(tmp_path, table, parses):
    store = IndexStore(tmp_path)
    listed(table, store)
    moved = table.rename(tmp_path / "moved.jsonl")
    assert listed(moved, store)[0][2] == [f"{moved}:2", f"{moved}:5"]
    assert len(parses) == 1
    moved.write_text(moved.read_text().replace("c10", "c11"))
    assert [c for c, _, _ in listed(moved, store)] == ["hr/Zoe", "it/c2", "it/c11"]
    assert len(parses) == 2


def test_other_columns_are_another_list(tmp_path, table, parses):
    store = IndexStore(tmp_path)
    listed(table, store)
    assert [c for c, _, _ in listed(table, store, columns=("client", "department"))] == ["Zoe/hr", "c10/it", "c2/it"]
    assert len(parses) == 2


@pytest.mark.parametrize("damage", ["torn", "other bytes", "a folder"])
def test_damage_costs_only_time(tmp_path, table, damage, caplog):
    wanted, path = listed(table, IndexStore(tmp_path)), tmp_path / "tables.bin"
    content = path.read_bytes()
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content[:-3] if damage == "torn" else content[:60] + b"\0\0" + content[62:])
    assert listed(table, IndexStore(tmp_path)) == wanted
    if damage == "a folder":
        assert "the list of clients is not kept" in caplog.text
    else:
        assert path.read_bytes()[-100:] == content[-100:]


def test_few_clients_or_bad_lines_leave_no_list(tmp_path, table):
    table.write_text('{"department": "hr", "client": "a", "text": "1"}\n')
    listed(table, IndexStore(tmp_path / "few"))
    table.write_text('{"department": "hr"}\n' * 9)
    with pytest.raises(InputError, match=":1: client: expected a name, got None"):
        listed(table, IndexStore(tmp_path / "bad"))
    assert not (tmp_path / "few").exists()
    assert not (tmp_path / "bad").exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, table, monkeypatch):
    owners = JsonLines.owners

    def growing(self, columns):
        with table.open("a") as file:
            file.write('{"department": "hr", "client": "new", "text": "1"}\n')
        return owners(self, columns)

    monkeypatch.setattr(JsonLines, "owners", growing)
    assert len(listed(table, IndexStore(tmp_path / "store"))) == 4
    assert not (tmp_path / "store").exists()


def test_an_index_goes_through_bytes():
    index = TableIndex([("hr", "é"), ("it", "b")], np.array([1, 3]), np.array([1, 0, 2]), np.arange(9).reshape(3, 3))
    again = TableIndex.unpack(index.pack())
    assert again.clients == index.clients
    assert all((getattr(again, n) == getattr(index, n)).all() for n in ("ends", "order", "lines"))


def test_loading_keeps_the_list_beside_the_tokens(tmp_path, table, tokenizer, monkeypatch):
    monkeypatch.setattr("fl_lightning.data.client_data.LAZY_ABOVE", 2)
    for _ in range(2):
        data = load_clients(table, tokenizer, token_store=str(tmp_path / "store"))
        assert len(data["it/c10"].train) + len(data["it/c10"].eval) == 2
    assert (tmp_path / "store" / "tables.bin").stat().st_size > 100
