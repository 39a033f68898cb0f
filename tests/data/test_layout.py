from __future__ import annotations

import pytest

from fl_lightning.data.layout import (
    draw_held_out,
    draw_selection,
    entries_not_read,
    find_client,
    find_clients,
    read_splits,
    true_clusters,
    unread_files,
)
from fl_lightning.errors import InputError


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


def test_departments_are_sorted_and_clients_come_in_natural_order(tmp_path, write_jsonl):
    for department in ("sales", "hr_personal_clients"):
        for client in ("client_10", "client_2", "client_1"):
            write_jsonl(tmp_path / department / f"{client}.jsonl", texts(2))
    found = find_clients(tmp_path)
    assert list(found) == ["hr", "sales"]
    assert [c.client for c in found["hr"]] == ["client_1", "client_2", "client_10"]


def test_clients_per_dept_takes_the_first_in_natural_order(tmp_path, write_jsonl):
    for client in ("client_10", "client_2", "client_1"):
        write_jsonl(tmp_path / "hr" / f"{client}.jsonl", texts(2))
    assert [c.client for c in find_clients(tmp_path, 2)["hr"]] == ["client_1", "client_2"]


def test_more_clients_than_there_are_names_the_department(tmp_path, write_jsonl):
    for place in ("hr/c0", "hr/c1", "sales/c0"):
        write_jsonl(tmp_path / f"{place}.jsonl", texts(2))
    with pytest.raises(InputError, match="expected 2 clients or more .*, got 1 in department sales"):
        find_clients(tmp_path, 2)


def test_other_files_and_folders_in_the_root_are_ignored(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(2))
    write_jsonl(tmp_path / "structure.json", [{}])
    write_jsonl(tmp_path / ".git" / "c.jsonl", texts(2))
    write_jsonl(tmp_path / "notes" / "readme.txt", [])
    (tmp_path / "hr" / "README.md").write_text("about")
    (tmp_path / "hr" / "empty").mkdir()
    assert {d: [c.client for c in cs] for d, cs in find_clients(tmp_path).items()} == {"hr": ["c"]}


@pytest.mark.parametrize("place", ["h r/c.jsonl", "hr/c 0.jsonl", "hr/c\n0.jsonl", "hr/é.jsonl", "hr/.../train.jsonl"])
def test_unsafe_names_are_refused(tmp_path, write_jsonl, place):
    write_jsonl(tmp_path / "ok" / "c.jsonl", texts(2))
    write_jsonl(tmp_path / place, texts(2))
    if place.startswith("hr/..."):  # hidden entries are not clients at all
        assert list(find_clients(tmp_path)) == ["ok"]
        return
    with pytest.raises(InputError, match="letters, digits"):
        find_clients(tmp_path)


def test_department_of_dots_after_the_suffix_is_refused(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "_personal_clients" / "c.jsonl", texts(2))
    with pytest.raises(InputError, match="department ''"):
        find_clients(tmp_path)


def test_two_folders_of_one_department_are_refused(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(2))
    write_jsonl(tmp_path / "hr_personal_clients" / "d.jsonl", texts(2))
    with pytest.raises(InputError, match="two folders"):
        find_clients(tmp_path)


def test_client_as_file_and_as_folder_is_refused(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c.jsonl", texts(2))
    write_jsonl(tmp_path / "hr" / "c" / "train.jsonl", texts(2))
    with pytest.raises(InputError, match="twice"):
        find_clients(tmp_path)


def test_eval_without_train_is_refused(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "c" / "eval.jsonl", texts(2))
    with pytest.raises(InputError, match="without train"):
        find_clients(tmp_path)


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p])
def test_root_without_departments_is_refused(tmp_path, make):
    with pytest.raises(InputError, match=r"data\.root"):
        find_clients(make(tmp_path))


def test_bundled_departments_have_four_departments():
    assert list(find_clients("bundled:departments", 3)) == ["customer_support", "engineering", "finance", "hr"]


def test_unknown_bundled_name_is_refused_with_a_hint():
    with pytest.raises(InputError, match="did you mean 'departments'"):
        find_clients("bundled:department")


def test_one_client_is_found_without_its_department_s_neighbors(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "hr_personal_clients" / "ann.jsonl", [{"text": "a"}, {"text": "b"}])
    (tmp_path / "b b").mkdir()
    write_jsonl(tmp_path / "b b" / "bob.jsonl", [{"text": "a"}])
    assert find_client(tmp_path, "hr/ann").train == path
    for client_id, hint in (
        ("hr/an", "did you mean 'hr/ann'"),
        ("hr", "got 'hr'"),
        ("hr/../hr/ann", "got 'hr/../hr/ann'"),
    ):
        with pytest.raises(InputError, match=hint):
            find_client(tmp_path, client_id)
    with pytest.raises(InputError, match=r"data\.root: .* is not a folder"):
        find_client(tmp_path / "none", "hr/ann")


def test_true_clusters_are_read_or_absent(tmp_path):
    assert true_clusters(tmp_path) is None
    (tmp_path / "structure.json").write_text('{"true_k": 2}')
    assert true_clusters(tmp_path) is None
    (tmp_path / "structure.json").write_text('{"true_department_clusters": [["b"], [], ["a", "c"]]}')
    assert true_clusters(tmp_path) == {"b": 0, "a": 2, "c": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"true_department_clusters": [["hr"]', "not valid JSON"),
        ("[]", "expected an object with true_department_clusters, got list"),
        ('{"true_department_clusters": {"hr": 0}}', r"expected lists of departments, got {'hr': 0}"),
        ('{"true_department_clusters": ["hr"]}', r"expected lists of departments, got \['hr'\]"),
        ('{"true_department_clusters": [["hr", 1]]}', "expected every department once, by its name, got 1"),
        ('{"true_department_clusters": [["hr"], ["hr"]]}', "expected every department once, by its name, got 'hr'"),
    ],
)
def test_a_malformed_structure_is_refused_with_its_file(tmp_path, text, message):
    (tmp_path / "structure.json").write_text(text)
    with pytest.raises(InputError, match=rf"structure\.json: .*{message}"):
        true_clusters(tmp_path)


def test_a_department_called_base_is_refused(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "base" / "ann.jsonl", texts(3))
    with pytest.raises(InputError, match="/base: expected another name than 'base', which is the base model's"):
        find_clients(tmp_path)


def test_files_and_folders_that_are_no_client_are_listed(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "ann.jsonl", texts(2))
    write_jsonl(tmp_path / "hr" / "dan" / "data.jsonl", texts(2))
    for name in ("hr/bob.csv", "hr/carl.parquet", "hr/README.md", "hr/.hidden", "it/eve.jsonl.gz", "notes/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert entries_not_read(tmp_path) == [tmp_path / name for name in ("hr/bob.csv", "hr/carl.parquet", "hr/dan", "it")]
    assert entries_not_read(tmp_path, "it") == [tmp_path / "it"]
    assert entries_not_read("bundled:departments") == []


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
