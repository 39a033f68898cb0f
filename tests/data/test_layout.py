from __future__ import annotations

import pytest

from fl_lightning.data.layout import entries_not_read, find_client, find_clients, true_clusters
from fl_lightning.errors import InputError


def texts(count):
    return [{"text": f"record {i}"} for i in range(count)]


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
