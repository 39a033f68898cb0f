"""Whether a client's records are in a chain, told by its salt; it says nothing about the records of others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fl_lightning.provenance.chain import Chain
from fl_lightning.provenance.salts import commit


@dataclass(frozen=True)
class Inclusion:
    """The rounds in which a client took part.

    Attributes:
        rounds: those with a commitment to its records.
        others: those with a commitment to other records, or under another salt.
        without: those without a commitment to records, which were at the client's site.
    """

    rounds: list[int]
    others: list[int]
    without: list[int]


def find_inclusion(chain: Chain, client_id: str, salt: str, digests: Collection[str]) -> Inclusion:
    """In which rounds of a chain a client's records are.

    Args:
        chain: that holds, from `check_chain`.
        client_id: of the client.
        salt: of the client, from `client_salt`.
        digests: of the client's records, from `records_digest`; several if there are several ways to read them.

    Example:
        >>> lines = [{"kind": "round", "round": n, "clients": {"hr/a": {"records": commit("ab", "records", digest)}}}
        ...          for n, digest in ((1, "01"), (2, "02"))]
        >>> find_inclusion(Chain(lines, []), "hr/a", "ab", ["01"])
        Inclusion(rounds=[1], others=[2], without=[])
    """
    expected = {commit(salt, "records", digest) for digest in digests}
    inclusion = Inclusion([], [], [])
    for number, line in chain.rounds.items():
        if client_id in line["clients"]:
            commitment = line["clients"][client_id].get("records")
            kind = inclusion.without if commitment is None else inclusion.others
            (inclusion.rounds if commitment in expected else kind).append(number)
    return inclusion
