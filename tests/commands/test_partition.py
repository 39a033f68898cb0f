import json

import pytest

from fl_lightning.data.layout import find_clients
from fl_lightning.data.splits import read_splits

AREAS = ["Customer support", "HR"]


@pytest.fixture
def pile(tmp_path):
    path = tmp_path / "pile.jsonl"
    rows = [{"question": f"q{i}", "answer": f"a{i % 3}", "area": AREAS[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLUMNS = ("--prompt", "question", "--completion", "answer")


def test_departments_by_column(command, pile, tmp_path):
    out = tmp_path / "out"
    code, text, errors = command(
        "partition", pile, "--by", "area", "--clients-per-dept", 2, *COLUMNS, "--label", "answer", "--output", out
    )
    assert (code, errors) == (0, "")
    assert f"fl-lightning fit --data {out} --clients-per-dept 2" in text
    clients = find_clients(out)
    assert {d: len(c) for d, c in clients.items()} == {"Customer_support": 2, "HR": 2}
    prompts = [r[0].content for files in clients["HR"] for half in read_splits(files) for r in half]
    assert sorted(prompts, key=lambda q: int(q[1:])) == [f"q{i}" for i in range(1, 40, 2)]
    facts = json.loads((out / "partition.json").read_text())
    assert facts["clients"]["HR/client_0"] == {
        "train": 8,
        "eval": 2,
        "labels": facts["clients"]["HR/client_0"]["labels"],
    }
    assert facts["options"]["by"] == "area"
    assert (out / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_the_same_files(command, pile, tmp_path):
    def files(name, seed):
        argv = ["--departments", 3, "--scheme", "dirichlet", "--label", "answer", "--seed", seed, *COLUMNS]
        assert command("partition", pile, *argv, "--output", tmp_path / name)[0] == 0
        found = sorted((tmp_path / name).rglob("*.jsonl"))
        return {path.relative_to(tmp_path / name).as_posix(): path.read_text() for path in found}

    first = files("a", 1)
    assert files("b", 1) == first
    assert files("c", 2) != first


def test_dry_run_prints_and_writes_nothing(command, pile, tmp_path):
    code, text, _ = command("partition", pile, "--departments", 2, *COLUMNS, "--dry-run")
    assert code == 0
    assert "department_1" in text
    assert "Nothing was written" in text
    assert list(tmp_path.iterdir()) == [pile]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "SOURCE"),
        (["PILE"], "expected --output DIR for the federation"),
        (["PILE", "--output", "OUT"], "expected --by COLUMN or --departments N"),
        (["PILE", "--output", "OUT", "--by", "area", "--departments", "2"], "one of --departments and --by"),
        (["PILE", "--output", "OUT", "--by", "aera", *COLUMNS], "did you mean 'area'?"),
        (["PILE", "--output", "OUT", "--by", "area"], "pile.jsonl:1: expected {instruction"),
        (["PILE", "--output", "PILE", "--by", "area", *COLUMNS], "is not overwritten"),
        (["PILE", "--output", "OUT", "--departments", "30", *COLUMNS], "expected at least"),
        (["PILE", "--output", "OUT", "--departments", "2", "--scheme", "dirichlet", *COLUMNS], "no label"),
        (["PILE", "--output", "OUT", "--departments", "2", "--scheme", "dirichle"], "--scheme: invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(command, pile, tmp_path, argv, words):
    places = {"PILE": str(pile), "OUT": str(tmp_path / "out")}
    code, _, errors = command("partition", *(places.get(item, item) for item in argv))
    assert code == 2
    assert len(errors.splitlines()) == 1, errors
    assert words in errors
    assert list(tmp_path.iterdir()) == [pile]
