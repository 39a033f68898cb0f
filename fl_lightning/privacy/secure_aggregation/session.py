"""A round of secure aggregation in memory: all clients and the server in one process, for ``fit``, tests and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fl_lightning.privacy.secure_aggregation.agreement import identity_key
from fl_lightning.privacy.secure_aggregation.client import SecureClient
from fl_lightning.privacy.secure_aggregation.messages import num_bytes
from fl_lightning.privacy.secure_aggregation.participant import Participant
from fl_lightning.privacy.secure_aggregation.randomness import Random, seeded_random
from fl_lightning.privacy.secure_aggregation.ring import Ring, error_bound, restore
from fl_lightning.privacy.secure_aggregation.server import SecureServer
from fl_lightning.privacy.secure_aggregation.terms import Terms

Step: TypeAlias = Literal["keys", "shares", "input", "signature", "unmask"]
"""The messages of a client in a round, in order."""
Record: TypeAlias = Callable[[Step, str, Any], None]
"""Called with each message that the server gets: its step, the client, the message."""
Input: TypeAlias = tuple[npt.NDArray[np.float64], int]
"""A client's update, shape (size,), and its weight."""


@dataclass
class SecureMean:
    """What the server knows after a round.

    Attributes:
        mean: weighted mean of the clients' updates, fp64, shape (size,); of clipped ones with noise, if terms have it.
        weight: sum of their weights.
        clients: whose updates are in it.
        error: largest absolute error of an element of the mean, besides noise.
        bytes_up: {client: bytes that it has sent}.
        bytes_down: {client: bytes that it has received}.
    """

    mean: npt.NDArray[np.float64]
    weight: int
    clients: list[str]
    error: float
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)


def simulated_members(
    clients: list[str], run_seed: int, *, min_clients: int = 3, threshold: float = 2 / 3
) -> dict[str, Participant]:
    """{client: it as a participant}, with identities from the run's seed."""
    keys = {name: seeded_random(run_seed, name)("identity") for name in clients}
    roster = {name: identity_key(key) for name, key in keys.items()}
    return {name: Participant(name, key, roster, min_clients, threshold) for name, key in keys.items()}


def aggregate_in_memory(
    terms: Terms,
    members: Mapping[str, Participant],
    inputs: Mapping[str, Input],
    random: Callable[[str], Random],
    *,
    drops: Mapping[str, Step] | None = None,
    record: Record | None = None,
) -> SecureMean:
    """A round, from the clients' updates to their mean.

    Args:
        terms: of the round.
        members: {client: it as a participant}.
        inputs: {client: (update, weight)}, each of a member.
        random: from a client to where its secrets come from.
        drops: {client: the first message that it does not send any more}.
        record: sees all that the server gets.

    Raises:
        SecureAggregationError: if a client refuses, or too few are left.

    Example:
        >>> members = simulated_members(["hr/a", "hr/b", "hr/c", "hr/d"], 7)
        >>> terms = Terms("run", "hr", 1, invited=4, size=2)
        >>> inputs = {name: (np.array([0.5, float(i)]), 10) for i, name in enumerate(members)}
        >>> result = aggregate_in_memory(terms, members, inputs, lambda c: seeded_random(7, c), drops={"hr/d": "input"})
        >>> result.mean.round(5).tolist(), result.weight, result.clients
        ([0.5, 1.0], 30, ['hr/a', 'hr/b', 'hr/c'])
    """
    drops = drops or {}
    server = SecureServer(terms, next(iter(members.values())).roster)
    up, down = dict.fromkeys(inputs, 0), dict.fromkeys(inputs, 0)

    def sends(client: str, step: Step, message: Any) -> bool:
        """Whether a message arrives; it is counted if it does."""
        if drops.get(client) == step:
            active.pop(client)
            return False
        up[client] += num_bytes(message)
        if record is not None:
            record(step, client, message)
        return True

    active = {name: SecureClient(members[name], terms, random(name)) for name in inputs}
    for name, client in list(active.items()):
        if sends(name, "keys", keys := client.advertise()):
            server.receive_keys(name, keys)
    advertisements = server.advertisements()
    for name, client in list(active.items()):
        down[name] += num_bytes(advertisements)
        if sends(name, "shares", shares := client.share_keys(advertisements)):
            server.receive_shares(name, shares)
    for name, client in list(active.items()):
        encrypted = server.shares_for(name)
        down[name] += num_bytes(encrypted)
        if drops.get(name) != "input":
            masked: Ring = client.masked_input(encrypted, *inputs[name])
        else:
            masked = np.zeros(0, dtype=np.uint32)
        if sends(name, "input", masked):
            server.receive_input(name, masked)
    survivors = server.survivors()
    for name, client in list(active.items()):
        down[name] += num_bytes(survivors)
        if sends(name, "signature", signature := client.sign_survivors(survivors)):
            server.receive_signature(name, signature)
    for name, client in list(active.items()):
        request = server.request_for(name)
        down[name] += num_bytes(request)
        if sends(name, "unmask", revealed := client.unmask(request)):
            server.receive_unmask(name, revealed)
    mean, weight = restore(server.result(), terms)
    error = error_bound(terms, len(survivors), weight)
    return SecureMean(mean, weight, survivors, error, up, down)
