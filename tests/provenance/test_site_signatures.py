"""A chain whose updates are signed by sites, and what somebody who can write all of it anew may try."""

import copy
import json

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ed25519

from fl_lightning.errors import InputError
from fl_lightning.provenance.chain import ChainError, LedgerFile
from fl_lightning.provenance.chain_check import check_chain
from fl_lightning.provenance.salts import client_salt, commit
from fl_lightning.provenance.signing import fingerprint, key_at, load_public_key
from fl_lightning.provenance.site_signatures import (
    check_site_signatures,
    read_site_keys,
    signed_statement,
    update_commitment,
)

RUN, SITES = "5e" * 16, ["hr/a", "hr/b", "it/c"]
KEYS = {name: ed25519.Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i, name in enumerate(SITES)}
PUBLIC = {name: key.public_key().public_bytes_raw().hex() for name, key in KEYS.items()}


def entry(client_id, round_num, content="", key=None):
    """What a site signs, put together by hand."""
    commitment = commit(client_salt("ab" * 32, client_id), "update", f"{client_id} {round_num} {content}")
    department, client = client_id.split("/")
    parts = ["fl-lightning update of a site, version 1", RUN, round_num, department, client, commitment]
    message = json.dumps(parts, separators=(",", ":")).encode()
    return {"update": commitment, "signature": (key or KEYS[client_id]).sign(message).hex(), "examples": 3}


@pytest.fixture
def lines():
    """The lines of a run of three rounds, without their links."""
    states = {"departments": {}, "groups": {}}
    start = {"kind": "start", "run": RUN, "config": "", "base": "", "versions": {}, "states": states, "sites": PUBLIC}
    rounds = [
        {"kind": "round", "round": r, "clients": {c: entry(c, r) for c in SITES}, "departments": {}, "states": states}
        for r in (1, 2, 3)
    ]
    end = {"kind": "end", "rounds": 3, "files": {}, "folders": {}, "checkpoints": {}}
    return copy.deepcopy([start, *rounds, end])


@pytest.fixture
def check(tmp_path):
    """Function that links the lines anew, as whoever has changed them would, and checks the chain."""

    def run(lines, known=None):
        file = LedgerFile(tmp_path / "ledger.jsonl")
        file.begin(lines[0])
        for line in lines[1:]:
            file.append(line)
        return check_site_signatures(check_chain(file.path.read_bytes()), known)

    return run


def test_a_chain_as_it_was_written_holds_with_and_without_known_keys(lines, check):
    assert check(lines) == check(lines, PUBLIC) == PUBLIC
    assert check(lines, {**PUBLIC, "it/d": "00" * 32}) == PUBLIC


def test_a_run_in_one_process_has_no_sites_and_is_refused_where_they_are_known(lines, check):
    lines[0].pop("sites")
    for line in lines[1:-1]:
        for values in line["clients"].values():
            values.pop("signature")
    assert check(lines) == {}
    with pytest.raises(ChainError, match=r"ledger.jsonl:1: unsigned: expected the public keys of sites"):
        check(lines, PUBLIC)


def invented(lines):
    lines[2]["clients"]["hr/a"]["update"] = "00" * 32


def of_another_round(lines):
    lines[2]["clients"]["hr/a"] = entry("hr/a", 1)


def of_another_site(lines):
    lines[2]["clients"]["hr/a"] = entry("hr/b", 2)


def exchanged(lines):
    clients = lines[2]["clients"]
    clients["hr/a"], clients["hr/b"] = clients["hr/b"], clients["hr/a"]


def signed_by_the_server(lines):
    lines[2]["clients"]["hr/a"] = entry("hr/a", 2, "made up", ed25519.Ed25519PrivateKey.generate())


def without_signature(lines):
    del lines[2]["clients"]["hr/a"]["signature"]


def without_commitment(lines):
    del lines[2]["clients"]["hr/a"]["update"]


def with_upper_case(lines):
    lines[2]["clients"]["hr/a"]["signature"] = lines[2]["clients"]["hr/a"]["signature"].upper()


def with_one_bit_less(lines):
    signature = lines[2]["clients"]["hr/a"]["signature"]
    lines[2]["clients"]["hr/a"]["signature"] = signature[:-1] + format(int(signature[-1], 16) ^ 1, "x")


def of_an_unknown_site(lines):
    lines[2]["clients"] = {"hr/0": entry("hr/a", 2), **lines[2]["clients"]}


def no_object(lines):
    lines[2]["clients"]["hr/a"] = []


def counted_again(lines):
    lines[2]["clients"]["hr/a"] = {**entry("hr/a", 1), "asked": 1}


def asked_in_the_future(lines):
    lines[2]["clients"]["hr/a"] = {**entry("hr/a", 3), "asked": 3}


@pytest.mark.parametrize(
    "change",
    [
        invented, of_another_round, of_another_site, exchanged, signed_by_the_server, without_signature,
        without_commitment, with_upper_case, with_one_bit_less, of_an_unknown_site, no_object, counted_again,
        asked_in_the_future,
    ],
)  # fmt: skip
def test_the_first_line_with_an_update_that_no_site_has_signed_is_named(lines, check, change):
    change(lines)
    with pytest.raises(ChainError, match=r"ledger.jsonl:3: hr/[a0]: (changed|unsigned)"):
        check(lines)


def test_a_late_update_counts_once_and_by_the_round_in_which_it_was_asked_for(lines, check):
    del lines[1]["clients"]["hr/a"]
    lines[3]["clients"]["hr/a"] = {**entry("hr/a", 1), "asked": 1}
    assert check(lines) == PUBLIC


def test_a_site_that_was_left_out_needs_no_signature(lines, check):
    lines[2]["clients"]["hr/a"] = {"rejected": "too late"}
    assert check(lines) == PUBLIC


def test_another_run_cannot_take_them_over(lines, check):
    lines[0]["run"] = "00" * 16
    with pytest.raises(ChainError, match=r"ledger.jsonl:2: hr/a: changed"):
        check(lines)


def test_a_server_with_keys_of_its_own_is_found_only_by_those_who_know_the_sites(lines, check):
    own = ed25519.Ed25519PrivateKey.generate()
    lines[0]["sites"]["hr/a"] = own.public_key().public_bytes_raw().hex()
    for line in lines[1:-1]:
        line["clients"]["hr/a"] = entry("hr/a", line["round"], "made up", own)
    check(lines)
    with pytest.raises(ChainError, match=f"ledger.jsonl:1: hr/a: expected the known key {fingerprint(PUBLIC['hr/a'])}"):
        check(lines, PUBLIC)
    with pytest.raises(ChainError, match="ledger.jsonl:1: hr/b: expected a site whose key is known"):
        check(lines, {"hr/a": lines[0]["sites"]["hr/a"]})


@pytest.mark.parametrize("sites", [[], {"hr/a": 7}, "x"])
def test_keys_of_another_form_are_named(lines, check, sites):
    lines[0]["sites"] = sites
    with pytest.raises(ChainError, match="ledger.jsonl:1: changed: sites"):
        check(lines)


def test_a_commitment_is_of_tensors_and_of_what_the_weight_comes_from():
    state = {"q.lora_A": torch.ones(2)}
    first = update_commitment("ab" * 32, state, 3, 30, [1.0])
    others = [
        update_commitment("cd" * 32, state, 3, 30, [1.0]),
        update_commitment("ab" * 32, {"q.lora_A": torch.zeros(2)}, 3, 30, [1.0]),
        update_commitment("ab" * 32, state, 4, 30, [1.0]),
        update_commitment("ab" * 32, state, 3, 31, [1.0]),
        update_commitment("ab" * 32, state, 3, 30, [1.5]),
    ]
    assert len({first, *others}) == 6
    statements = [signed_statement(r, n, c, first) for r in "ab" for n in (1, 11) for c in ("a/bc", "ab/c")]
    assert len(set(statements)) == 8


def test_known_keys_are_read_from_a_file_of_openssh_lines(tmp_path):
    keys = {name: key_at(tmp_path / name.replace("/", ".") / "sign.key") for name in SITES[:2] for _ in (1, 2)}
    public = {name: (tmp_path / name.replace("/", ".") / "sign.key.pub") for name in keys}
    file = tmp_path / "sites.txt"
    file.write_text(
        "# known\n\n" + "".join(f"{name} {path.read_text().strip()} me@site\n" for name, path in public.items())
    )
    assert read_site_keys(file) == {name: load_public_key(path) for name, path in public.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a line with the public key of each site, got none"),
        ("hr/a\n", "sites.txt:1: expected a client id and a key"),
        ("# x\nhr ssh-ed25519 AAAA\n", "sites.txt:2: expected a client id and a key"),
        ("hr/a ssh-ed25519 AAAA\n", "sites.txt:1: expected an Ed25519 key"),
        ("hr/a KEY\nhr/a KEY\n", "sites.txt:2: expected one key for hr/a"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, text, message):
    key_at(tmp_path / "key")
    (tmp_path / "sites.txt").write_text(text.replace("KEY", (tmp_path / "key.pub").read_text().strip()))
    with pytest.raises(InputError, match=message):
        read_site_keys(tmp_path / "sites.txt")


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "sign.key"
    first = key_at(path).private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "sign.key.pub").unlink()  # as after a kill between the two files
    assert key_at(path).private_bytes_raw() == first
    assert load_public_key(tmp_path / "sign.key.pub")
    path.chmod(0o644)
    with pytest.raises(InputError, match="sign.key"):
        key_at(path)
