from __future__ import annotations

import json
import shutil

import pytest

from fl_lightning.config import DataConfig, FederationConfig, HierarchyConfig, LoraConfig, LoraProfile, RunConfig
from fl_lightning.data import client_data
from fl_lightning.data.client_data import load_clients
from fl_lightning.data.layout import find_client, find_clients, find_places
from fl_lightning.errors import InputError
from fl_lightning.federation.fingerprint import records_digest
from fl_lightning.runs.excluded import check_excluded, client_places
from fl_lightning.storage.record_digest import record_digest


def _record(department, number, i):
    return {"prompt": f"question {i} to {number}", "completion": f"answer {i} of {department}"}


@pytest.fixture
def root(tmp_path, write_jsonl):
    for department in ("sales", "hr"):
        for number in range(4):
            records = [_record(department, number, i) for i in range(10)]
            if number % 2:
                write_jsonl(tmp_path / "data" / department / f"client_{number}.jsonl", records)
            else:
                write_jsonl(tmp_path / "data" / department / f"client_{number}" / "train.jsonl", records[:7])
                write_jsonl(tmp_path / "data" / department / f"client_{number}" / "eval.jsonl", records[7:])
    return tmp_path / "data"


@pytest.fixture
def table(root, write_jsonl):
    """The same clients as one JSONL file."""
    rows = [
        {"department": d, "client": f"client_{n}", **_record(d, n, i)}
        for i in range(10)
        for d in ("sales", "hr")
        for n in range(4)
    ]
    return write_jsonl(root.parent / "table.jsonl", rows)


def _ids(*arguments, **options):
    return [client.client_id for clients in find_clients(*arguments, **options).values() for client in clients]


@pytest.mark.parametrize("form", ["root", "table"])
def test_nobody_moves_up_to_the_place_of_an_excluded_client(form, request):
    data = request.getfixturevalue(form)
    assert _ids(data, 2, exclude=["hr/client_1"]) == ["hr/client_0", "sales/client_0", "sales/client_1"]
    assert _ids(data, 2, exclude=["hr"]) == ["sales/client_0", "sales/client_1"]
    assert _ids(data, 1, exclude=["hr/client_0"]) == ["sales/client_0"]


def test_the_place_stays_when_the_client_s_files_are_deleted(root):
    before = find_places(root, 3, exclude=["hr/client_0", "hr/client_1"])
    shutil.rmtree(root / "hr" / "client_0")
    (root / "hr" / "client_1.jsonl").unlink()
    after = find_places(root, 3, exclude=["hr/client_0", "hr/client_1"])
    assert [*before["hr"]] == [*after["hr"]] == ["hr/client_0", "hr/client_1", "hr/client_2"]
    assert [client is None for client in after["hr"].values()] == [True, True, False]


def test_places_are_those_of_the_team(root):
    config = RunConfig(
        data=DataConfig(root=str(root), clients_per_dept=3, exclude=["hr/client_1"]),
        federation=FederationConfig(hierarchy=HierarchyConfig(groups={"team": ["hr/client_1", "hr/client_2"]})),
    )
    present = ["hr/client_0", "sales/client_0", "sales/client_1", "sales/client_2", "team/client_2"]
    places = client_places(config, present)
    assert places == [*present[:4], "team/client_1", "team/client_2"]


def test_an_excluded_client_cannot_be_asked_for(root):
    with pytest.raises(InputError, match="left out"):
        find_client(root, "hr/client_1", exclude=["hr/client_1"])


def test_some_client_must_be_left(root):
    with pytest.raises(InputError, match="data.exclude: expected to leave"):
        find_clients(root, exclude=["hr", "sales"])


@pytest.mark.parametrize("form", ["root", "table"])
@pytest.mark.parametrize("lazy", [False, True])
def test_excluded_records_are_as_if_their_lines_were_not_there(form, lazy, request, tokenizer, monkeypatch, tmp_path):
    """The reference is a copy of the data without the lines."""
    data = request.getfixturevalue(form)
    gone = [_record("hr", 1, 4), _record("hr", 2, 2), _record("hr", 2, 8)]
    copy = tmp_path / "without"
    shutil.copytree(data, copy) if data.is_dir() else shutil.copy(data, copy := tmp_path / "without.jsonl")
    for file in copy.rglob("*.jsonl") if copy.is_dir() else [copy]:
        lines = file.read_text().splitlines()
        left = [
            line
            for line in lines
            if {k: v for k, v in json.loads(line).items() if k in ("prompt", "completion")} not in gone
        ]
        file.write_text("".join(f"{line}\n" for line in left))
    if lazy:
        monkeypatch.setattr(client_data, "LAZY_ABOVE", 0)
    options = {"max_records": 5, "seed": 3, "token_store": str(tmp_path / "store")}
    every = load_clients(data, tokenizer, **options)
    assert records_digest(every["hr/client_2"])  # fills the store with all records first
    loaded = load_clients(data, tokenizer, exclude_records=[record_digest(record) for record in gone], **options)
    expected = load_clients(copy, tokenizer, **options)
    assert list(loaded) == list(expected)
    assert {c: records_digest(loaded[c]) for c in loaded} == {c: records_digest(expected[c]) for c in expected}
    assert records_digest(loaded["hr/client_2"]) != records_digest(every["hr/client_2"])


def test_a_name_that_matches_nothing_is_refused_with_the_nearest(root):
    config = RunConfig(data=DataConfig(root=str(root), exclude=["hr", "sales/client_l"]))
    with pytest.raises(InputError, match=r"got 'sales/client_l'; did you mean 'sales/client_"):
        check_excluded(config)


def test_a_record_that_is_nowhere_is_refused(root):
    digests = [record_digest(_record("hr", 1, 4)), record_digest({"text": "a"})]
    config = RunConfig(data=DataConfig(root=str(root), exclude_records=digests))
    with pytest.raises(InputError, match=f"got 1 that are in no file.*{digests[1]}"):
        check_excluded(config)
    config.data.exclude_records = digests[:1]
    assert check_excluded(config) == {"hr/client_1": {digests[0]}}


def test_the_config_keeps_digests_instead_of_records(tmp_path, write_jsonl):
    file = write_jsonl(tmp_path / "gone.jsonl", [_record("hr", 0, 0)])
    assert DataConfig(exclude_records=str(file)).exclude_records == [record_digest(_record("hr", 0, 0))]


def test_groups_and_profiles_lose_what_is_excluded():
    groups = {"trade": ["finance", "sales"], "staff": ["hr"], "shell": ["it/a"], "all": ["trade", "staff", "shell"]}
    config = RunConfig(
        data=DataConfig(exclude=["hr", "it/a", "finance"]),
        federation=FederationConfig(hierarchy=HierarchyConfig(groups=groups)),
        lora=LoraConfig(profiles={"hr/b": LoraProfile(4), "sales": LoraProfile(8)}),
    )
    assert config.federation.hierarchy.groups == {"trade": ["sales"], "all": ["trade"]}
    assert [*config.lora.profiles] == ["sales"]
