from __future__ import annotations

import pytest

from fl_lightning.data.client_files import unread_files
from fl_lightning.data.layout import find_clients
from fl_lightning.data.splits import draw_held_out, draw_selection, read_splits


def texts(count, start=0):
    return [{"text": f"record {i}"} for i in range(start, start + count)]


def contents(records):
    return [record[0].content for record in records]


@pytest.mark.parametrize("folder", ["hr_personal_clients", "hr"])
def test_client_folders_with_train_and_eval_are_found(tmp_path, write_jsonl, folder):
    write_jsonl(tmp_path / folder / "client_0" / "train.jsonl", texts(3))
    write_jsonl(tmp_path / folder / "client_0" / "eval.jsonl", texts(2, start=50))
    (client,) = find_clients(tmp_path)["hr"]
    training, held_out = read_splits(client)
    assert client.client_id == "hr/client_0"
    assert contents(training) == ["record 0", "record 1", "record 2"]
    assert contents(held_out) == ["record 50", "record 51"]


@pytest.mark.parametrize("folder", ["hr_personal_clients", "hr"])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_client_files_are_found_and_split(tmp_path, write_jsonl, folder, ending):
    path = tmp_path / folder / f"client_0.{ending}"
    if ending == "json":
        path.parent.mkdir()
        path.write_text('[{"text": "a"}, {"text": "b"}, {"text": "c"}]')
    else:
        write_jsonl(path, [{"text": t} for t in "abc"])
    (client,) = find_clients(tmp_path)["hr"]
    training, held_out = read_splits(client)
    assert (client.client, client.eval) == ("client_0", None)
    assert sorted(contents(training) + contents(held_out)) == ["a", "b", "c"]
    assert len(held_out) == 1


def test_client_folder_without_eval_file_is_split(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c" / "train.jsonl", texts(10))
    training, held_out = read_splits(find_clients(tmp_path)["hr"][0], eval_fraction=0.3)
    assert (len(training), len(held_out)) == (7, 3)
    assert not set(contents(training)) & set(contents(held_out))


def test_train_and_eval_may_be_json_lists(tmp_path):
    folder = tmp_path / "hr" / "c"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text('[{"text": "a"}]')
    (folder / "eval.json").write_text('[{"text": "b"}]')
    training, held_out = read_splits(find_clients(tmp_path)["hr"][0])
    assert (contents(training), contents(held_out)) == (["a"], ["b"])


def test_split_is_the_same_for_the_same_seed_and_differs_between_seeds(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(40))
    client = find_clients(tmp_path)["hr"][0]
    first = contents(read_splits(client, seed=1)[1])
    assert first == contents(read_splits(client, seed=1)[1])
    assert first != contents(read_splits(client, seed=2)[1])


def test_split_differs_between_clients_of_one_seed(tmp_path, write_jsonl):
    for name in ("c0", "c1"):
        write_jsonl(tmp_path / "hr" / f"{name}.jsonl", texts(40))
    first, second = find_clients(tmp_path)["hr"]
    assert contents(read_splits(first)[1]) != contents(read_splits(second)[1])


def test_held_out_records_do_not_depend_on_max_records(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(40))
    client = find_clients(tmp_path)["hr"][0]
    training, held_out = read_splits(client, max_records=5)
    assert len(training) == 5
    assert contents(held_out) == contents(read_splits(client)[1])


def test_max_records_keeps_the_first_training_records(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c" / "train.jsonl", texts(5))
    write_jsonl(tmp_path / "hr" / "c" / "eval.jsonl", texts(4))
    training, held_out = read_splits(find_clients(tmp_path)["hr"][0], max_records=2)
    assert (contents(training), len(held_out)) == (["record 0", "record 1"], 4)


@pytest.mark.parametrize(("fraction", "count", "held"), [(0.01, 10, 1), (0.99, 4, 3), (0.5, 2, 1)])
def test_split_leaves_at_least_one_record_on_each_side(tmp_path, write_jsonl, fraction, count, held):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(count))
    training, held_out = read_splits(find_clients(tmp_path)["hr"][0], eval_fraction=fraction)
    assert (len(training), len(held_out)) == (count - held, held)


@pytest.mark.parametrize("count", [0, 1])
def test_an_only_record_is_for_training_and_none_is_held_out(tmp_path, write_jsonl, count):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(count))
    training, held_out = read_splits(find_clients(tmp_path)["hr"][0])
    assert (len(training), held_out) == (count, [])


@pytest.mark.parametrize("name", ["validation.jsonl", "valid.json", "val.jsonl", "dev.jsonl"])
def test_a_validation_file_is_held_out_and_a_test_file_never_is(tmp_path, write_jsonl, name):
    train = write_jsonl(tmp_path / "hr" / "c" / "train.jsonl", texts(4))
    test = write_jsonl(train.parent / "test.jsonl", texts(3))
    (client,) = find_clients(tmp_path)["hr"]
    assert (client.eval, unread_files(client)) == (None, [test])
    held_out = train.parent / name
    held_out.write_text('[{"text": "a"}]' if name.endswith(".json") else '{"text": "a"}\n')
    (client,) = find_clients(tmp_path)["hr"]
    assert (client.eval, unread_files(client)) == (held_out, [test])
    assert [len(split) for split in read_splits(client)] == [4, 1]
    write_jsonl(train.parent / "eval.jsonl", texts(2))
    (client,) = find_clients(tmp_path)["hr"]
    assert {path.name for path in unread_files(client)} == {"test.jsonl", name}
    assert [len(split) for split in read_splits(client)] == [4, 2]


def test_selection_records_are_a_share_or_a_number_and_leave_one_to_train_on():
    sizes = {wanted: len(draw_selection(10, "hr", "a", wanted, seed=0)) for wanted in (0, 0.01, 0.2, 0.99, 1, 3, 40)}
    assert sizes == {0: 0, 0.01: 1, 0.2: 2, 0.99: 9, 1: 1, 3: 3, 40: 9}
    assert draw_selection(1, "hr", "a", 0.5, seed=0) == set()


def test_selection_follows_seed_and_client_and_not_the_held_out_draw():
    draws = [
        draw_selection(50, "hr", "a", 10, 0),
        draw_selection(50, "hr", "b", 10, 0),
        draw_selection(50, "hr", "a", 10, 1),
    ]
    draws.append(draw_held_out(50, "hr", "a", 0.2, 0))
    assert len({frozenset(draw) for draw in draws}) == 4
    assert draws[0] == draw_selection(50, "hr", "a", 10, 0)
