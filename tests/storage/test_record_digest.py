from __future__ import annotations

import hashlib

import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.record_digest import is_digest, read_digests, record_digest


def test_the_digest_is_that_of_the_documented_text():
    text = '{"completion":"Gruß","prompt":"a b"}'
    record = {"prompt": "a b", "completion": "Gruß", "system": None}
    assert record_digest(record) == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_lists_records_and_digests(tmp_path):
    file = tmp_path / "records.jsonl"
    other = record_digest({"text": "b"})
    file.write_text(f'\n{{"text":   "a"}}\n{other}\n{{"text": "a"}}\n')
    assert read_digests(file) == sorted({other, record_digest({"text": "a"})})
    assert all(map(is_digest, read_digests(file)))


@pytest.mark.parametrize("line", ["a", "[1]", '{"text": "a"', "0" * 63])
def test_another_line_is_refused_with_its_number(tmp_path, line):
    file = tmp_path / "records.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"records.jsonl:2: expected a record"):
        read_digests(file)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text("\n")
    with pytest.raises(InputError, match="got none"):
        read_digests(file)
