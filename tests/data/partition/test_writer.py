import json

import pytest
from rich.console import Console

from fl_lightning.data.layout import find_clients
from fl_lightning.data.partition import writer
from fl_lightning.data.splits import draw_held_out, read_splits
from fl_lightning.errors import InputError

RECORDS = [{"prompt": f"q{i}", "completion": "ü"} for i in range(6)]
DEALT = {"hr/client_0": ([0, 1], [2]), "it/client_0": ([3, 5], [4])}


def test_each_client_has_records_on_both_sides_drawn_by_the_seed_as_fit_draws_them():
    indices = list(range(3, 23))

    def halves(fraction, seed=5, indices=indices):
        (split,) = writer.split_clients({"hr": {"ann": indices}}, fraction, seed).values()
        return split

    assert [len(half) for half in halves(0.9, indices=[7, 9])] == [1, 1]
    assert [len(half) for half in halves(0.01)] == [19, 1]
    train, held_out = halves(0.25)
    assert len(held_out) == 5
    assert sorted(train + held_out) == indices
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert (train, held_out) == halves(0.25)
    assert held_out != halves(0.25, seed=6)[1]
    assert {i - 3 for i in held_out} == draw_held_out(20, "hr", "ann", 0.25, 5)


def test_each_client_is_split_by_a_draw_of_its_own():
    shares = {"hr": {"a": list(range(40)), "b": list(range(40))}}
    found = writer.split_clients(shares, 0.5, 0)
    assert found["hr/a"] != found["hr/b"]
    assert found == writer.split_clients({"hr": {"b": list(range(40)), "a": list(range(40))}}, 0.5, 0)


def test_written_federation_is_what_fit_reads(tmp_path):
    writer.write_federation(tmp_path / "out", RECORDS, DEALT, {"seed": 1}, b"png")
    clients = find_clients(tmp_path / "out")
    assert list(clients) == ["hr", "it"]
    train, held_out = read_splits(clients["it"][0])
    assert [record[0].content for record in train] == ["q3", "q5"]
    assert [record[0].content for record in held_out] == ["q4"]
    assert (tmp_path / "out/hr/client_0/train.jsonl").read_text().splitlines()[
        0
    ] == '{"prompt": "q0", "completion": "ü"}'
    assert json.loads((tmp_path / "out/partition.json").read_text()) == {"seed": 1}
    assert (tmp_path / "out/partition.png").read_bytes() == b"png"


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists and is not overwritten"):
        writer.write_federation(tmp_path / "there", RECORDS, DEALT, {})
    with pytest.raises(ValueError, match="JSON"):
        writer.write_federation(tmp_path / "new", RECORDS, DEALT, {"bad": float("nan")})
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        writer.write_federation(tmp_path / "file" / "new", RECORDS, DEALT, {})


def test_table_and_picture_show_who_got_what():
    counts = {"hr/client_0": {"x": 2, "y": 1}, "it/client_0": {"x": 0, "y": 3}}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(writer.make_table(DEALT, counts, "pile"))
    text = console.export_text()
    assert "x 67%, y 33%" in text
    assert "2 clients" in text
    assert writer.draw_counts(counts, "kind").startswith(b"\x89PNG")
    many = {"hr/client_0": {f"label {i:02}": i for i in range(40)}}
    assert writer.draw_counts(many, "kind").startswith(b"\x89PNG")
