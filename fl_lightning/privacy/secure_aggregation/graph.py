"""Who is masked with whom: everybody with everybody, or, of many clients, each with k others (Bell et al. 2020).

Clients stand on a ring in an order drawn from the keys of the round, and each is connected with the k/2 on either side
(a Harary graph, as in Bell et al., ePrint 2020/704, section 3.1). k is the smallest even number for which, with a tenth
of the clients working together with the server and another tenth dropping out,

- nobody has enough such neighbors for the server to get both of its secrets, except with probability 2⁻⁴⁰;
- the honest clients that stay are connected, except with probability 2⁻⁴⁰: otherwise parts of the sum would show;
- everybody keeps enough neighbors that its secrets can be restored, except with probability 2⁻²⁰.

With ``threshold: 2/3`` all are neighbors of all up to 41 clients; of 64 each has 40, of 1,000 each has 116.

The order depends on the keys of all clients, so nobody knows it before they are signed. A server that leaves clients
out can still try several orders: against a server that does not follow the protocol, the second bound holds only for
one that does not do this at length.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cache

from scipy.stats import hypergeom

from fl_lightning.privacy.secure_aggregation.terms import Terms

COLLUDING, DROPPING = 0.1, 0.1
"""Shares of the clients for which the degree is chosen."""
_SECURITY, _CORRECTNESS = 2.0**-40, 2.0**-20


def neighbors(clients: Iterable[str], seed: bytes, degree: int) -> dict[str, list[str]]:
    """{client: its neighbors, sorted}.

    Args:
        clients: names.
        seed: of the order on the ring.
        degree: neighbors of a client, even; all are connected if it is at least the number of the others.

    Example:
        >>> neighbors("abc", b"", 8)
        {'a': ['b', 'c'], 'b': ['a', 'c'], 'c': ['a', 'b']}
        >>> ring = neighbors("abcdef", b"", 2)
        >>> [len(others) for others in ring.values()], all(a in ring[b] for a in ring for b in ring[a])
        ([2, 2, 2, 2, 2, 2], True)
    """
    names = sorted(clients)
    if degree >= len(names) - 1:
        return {name: [other for other in names if other != name] for name in names}
    order = sorted(names, key=lambda name: hashlib.sha256(seed + b"\0" + name.encode()).digest())
    reach = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    ring = {name: sorted(order[(i + step) % len(order)] for step in reach) for i, name in enumerate(order)}
    return {name: ring[name] for name in names}


def degree_for(clients: int, terms: Terms) -> int:
    """Neighbors of a client: ``clients - 1``, or the smallest number that keeps the bounds.

    Example:
        >>> terms = Terms("run", "hr", 1, invited=1000, size=1)
        >>> degree_for(16, terms), degree_for(1000, terms)
        (15, 116)
    """
    return _degree(clients, terms.threshold)


@cache
def _degree(clients: int, threshold: float) -> int:
    colluding, dropping = math.floor(COLLUDING * clients), math.floor(DROPPING * clients)
    for degree in range(2, clients - 1, 2):
        holders = degree + 1
        needed = min(holders, math.floor(threshold * holders + 1e-9) + 1)
        both = hypergeom.sf(2 * needed - holders - 1, clients - 1, colluding, degree)
        lost = hypergeom.sf(holders - needed, clients, dropping, holders)
        apart = (COLLUDING + DROPPING) ** (degree // 2)
        if clients * max(both, apart) <= _SECURITY and clients * lost <= _CORRECTNESS:
            return degree
    return clients - 1
