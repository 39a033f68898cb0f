import hashlib
import json

import pytest

from fl_lightning import InputError
from fl_lightning.provenance.chain import LedgerFile, parse_line, read_chain

ROUNDS = [{"kind": "round", "round": number} for number in (1, 2, 3)]


@pytest.fixture
def ledger(tmp_path):
    file = LedgerFile(tmp_path / "ledger.jsonl")
    file.begin({"kind": "start", "run": "ab"})
    for line in ROUNDS:
        file.append(line)
    return file


def test_each_line_has_the_sha256_of_the_line_before(ledger):
    lines = ledger.path.read_bytes().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        assert json.loads(line)["previous"] == hashlib.sha256(before).hexdigest()


def test_lines_are_written_in_one_way_only(ledger):
    for line in ledger.path.read_text().splitlines():
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("torn", [b"", b'{"kind":"rou'])
def test_a_resumed_ledger_has_the_bytes_of_an_undisturbed_one(ledger, torn):
    whole = ledger.path.read_bytes()
    ledger.append({"kind": "end", "rounds": 3})
    ledger.path.write_bytes(ledger.path.read_bytes() + torn)
    resumed = LedgerFile(ledger.path)
    assert resumed.truncate(2)
    resumed.append(ROUNDS[2])
    assert ledger.path.read_bytes() == whole


def test_a_ledger_that_ends_too_early_is_left_as_it_is(ledger):
    before = ledger.path.read_bytes()
    assert not LedgerFile(ledger.path).truncate(4)
    assert not LedgerFile(ledger.path.with_name("none")).truncate(1)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        b"", b"7", b"[]", b"\xff\xfe", b'{"kind":"round","x":NaN}', b'{"kind":"round", "round":1}', b'{"kind":"other"}',
        b'{"kind":{}}', b'{"kind":"round","kind":"round"}', b"[" * 100_000, b'{"kind":"round","x":1e999}',
        b'{"kind":"round","x":"\\ud800\xff"}', b'{"kind":"round","x":' + b"9" * 5000 + b"}", b"\x00" * 50,
    ],
)  # fmt: skip
def test_garbage_is_refused(line, tmp_path):
    with pytest.raises(ValueError, match=r".+"):
        parse_line(line)
    (tmp_path / "ledger.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"ledger.jsonl:1: "):
        read_chain(tmp_path)


def test_a_run_without_a_ledger_says_which_key_writes_one(tmp_path):
    with pytest.raises(InputError, match=r"ledger.jsonl: cannot be read .* ledger.enabled: true"):
        read_chain(tmp_path)
