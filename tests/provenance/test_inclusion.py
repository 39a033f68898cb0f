"""A client learns from its salt in which rounds its records are, and nothing about others."""

import pytest

from fl_lightning.provenance.chain import Chain
from fl_lightning.provenance.inclusion import Inclusion, find_inclusion
from fl_lightning.provenance.salts import client_salt, commit

SECRET = "ab" * 32


def chain(*rounds):
    """A chain of rounds, each {client_id: digest of its records; None for those at a site}."""
    lines = []
    for number, clients in enumerate(rounds, start=1):
        entries = {
            name: {} if digest is None else {"records": commit(client_salt(SECRET, name), "records", digest)}
            for name, digest in clients.items()
        }
        lines.append({"kind": "round", "round": number, "clients": entries})
    return Chain(lines, [])


def test_rounds_are_told_apart_by_what_the_client_trained_on():
    lines = chain({"hr/a": "01", "hr/b": "05"}, {"hr/b": "05"}, {"hr/a": "02"}, {"hr/a": None})
    salt = client_salt(SECRET, "hr/a")
    assert find_inclusion(lines, "hr/a", salt, ["01"]) == Inclusion([1], [3], [4])
    assert find_inclusion(lines, "hr/a", salt, ["01", "02"]) == Inclusion([1, 3], [], [4])


def test_a_salt_is_of_no_use_for_another_client():
    lines = chain({"hr/a": "01", "hr/b": "01"})
    assert find_inclusion(lines, "hr/b", client_salt(SECRET, "hr/a"), ["01"]) == Inclusion([], [1], [])


@pytest.mark.parametrize("purpose", ["update", "own", "starts"])
def test_a_commitment_to_something_else_does_not_count(purpose):
    salt = client_salt(SECRET, "hr/a")
    lines = Chain([{"kind": "round", "round": 1, "clients": {"hr/a": {"records": commit(salt, purpose, "01")}}}], [])
    assert find_inclusion(lines, "hr/a", salt, ["01"]).others == [1]
