"""A department's step from a masked sum of its clients' updates (`fl_lightning.privacy.secure_aggregation`).

Every client quantizes and masks what it has changed, ``θ_c − θ_d``, times its weight. The server takes a step towards
``θ_d + Σ w_c (θ_c − θ_d) / Σ w_c``, and knows which clients are in it and ``Σ w_c``, but no single update or weight.
Here both sides run in this process.

Under differential privacy (``guard.name: dp``) clients clip what they mask and add noise to it. Their sum is divided
by the number of clients in it, which everybody knows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.aggregation.department import DepartmentStep, Residual, apply_server_step, step_size_of
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.config import FederationConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.state import clients_by_department

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.session import SecureMean
    from fl_lightning.privacy.secure_aggregation.terms import Terms


def problem_with_input(
    config: FederationConfig,
    update: Mapping[str, torch.Tensor],
    previous: Mapping[str, torch.Tensor],
    stats: ClientStats,
) -> str | None:
    """Why a client cannot take part with an update, or None if it can. It sees so itself, and sends nothing.

    Args:
        config: the ``federation`` block: ``masking`` and ``weighting``.
        update: θ_c, the shared factors.
        previous: θ_d.
        stats: inputs of the client's weight.
    """
    if config.guard.name == "dp":  # it is clipped instead: whether it fits would tell of its records
        return None
    weight, limit = weight_of(config, stats), _max_weight(config)
    if not 1 <= weight <= limit:
        return f"weight: expected 1 to {limit} (federation.masking.max_weight), got {weight}"
    largest = max(change.abs().max().item() for change in Residual(update, previous).values())
    if not largest <= config.masking.bound:
        return (
            f"largest change of an element: expected at most {config.masking.bound:g} (federation.masking.bound), got "
            f"{largest:.3g}"
        )
    return None


def clients_needed(config: FederationConfig, asked: int) -> int:
    """How many of the clients that were asked must be in a department's sum, or the round learns nothing.

    Example:
        >>> clients_needed(FederationConfig(), 16), clients_needed(FederationConfig(), 2)
        (11, 3)
    """
    return max(config.masking.min_clients, min(asked, math.floor(config.masking.threshold * asked + 1e-9) + 1))


def check_departments(config: FederationConfig, client_ids: Iterable[str], asked_of: Callable[[int], int]) -> None:
    """Check that a round asks enough clients of each department.

    Args:
        config: the ``federation`` block.
        client_ids: of the federation.
        asked_of: from a department's number of clients to how many a round asks.

    Raises:
        InputError: if one has too few; under differential privacy also if it has too many for its little noise.

    Example:
        >>> check_departments(FederationConfig(secure_aggregation=True), ["hr/a", "hr/b"], asked_of=lambda count: count)
        Traceback (most recent call last):
        fl_lightning.errors.InputError: federation.secure_aggregation: expected at least 3 clients of each department \
in a round (federation.masking.min_clients), got 2 of hr; a sum of fewer shows too much of each
    """
    if not config.secure_aggregation:
        return
    for name, members in sorted(clients_by_department(client_ids).items()):
        if (asked := asked_of(len(members))) < (needed := config.masking.min_clients):
            raise InputError(
                f"federation.secure_aggregation: expected at least {needed} clients of each department in a round "
                f"(federation.masking.min_clients), got {asked} of {name}; a sum of fewer shows too much of each"
            )
        if config.guard.name == "dp":
            _check_noise(config, name, asked)


def _check_noise(config: FederationConfig, department: str, asked: int) -> None:
    try:
        round_terms(config, {"": torch.zeros(1)}, run="", department=department, round_num=1, invited=asked)
    except ValueError as error:
        raise InputError(f"federation.privacy, {department}: {error}") from error


def aggregate_securely(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    stats: Mapping[str, ClientStats],
    optimizer_state: Mapping[str, torch.Tensor],
    *,
    department: str,
    asked: int,
    seed: int,
    noise_key: str = "",
) -> DepartmentStep:
    """A department's next state from a masked sum.

    Args:
        config: the ``federation`` block: ``masking``, ``weighting``, ``flora`` and ``server``.
        round_num: from 1.
        previous: θ_d, the shared factors.
        updates: {client_id: θ_c}; each is read once, one at a time.
        stats: {client_id: inputs of its weight}.
        optimizer_state: `DepartmentStep.optimizer_state` of the round before; empty at the start.
        department: its name.
        asked: number of clients that were asked.
        seed: of the run. Secrets are hashed from it, since all clients are in this process; the step does not depend
            on them.
        noise_key: secret, for this round and department only; clients' shares of the noise are drawn from it.

    Raises:
        InputError: if the libraries of the ``secure`` extra are missing.
        SecureAggregationError: if the round fails; the server has learned nothing.

    Example:
        >>> clients = {f"hr/{name}": {"lora_A": torch.tensor([change])} for name, change in zip("abc", (1.0, 2.0, 4.0))}
        >>> stats = {client_id: ClientStats(10, 90) for client_id in clients}
        >>> start = {"lora_A": torch.tensor([1.0])}
        >>> step = aggregate_securely(
        ...     FederationConfig(), 1, start, clients, stats, {}, department="hr", asked=3, seed=7
        ... )
        >>> round(step.state["lora_A"].item(), 4), step.weights, step.masked.weight  # 1 + 0.1 · (0 + 1 + 3) / 3
        (1.1333, {}, 30)
    """
    from fl_lightning.privacy.secure_aggregation.requirements import check_installed

    check_installed()
    from fl_lightning.privacy.secure_aggregation.randomness import seeded_random
    from fl_lightning.privacy.secure_aggregation.session import aggregate_in_memory, simulated_members

    terms = round_terms(config, previous, run=f"seed {seed}", department=department, round_num=round_num, invited=asked)
    masking = config.masking
    members = simulated_members(list(updates), seed, min_clients=masking.min_clients, threshold=masking.threshold)
    if config.guard.name == "dp" and not noise_key:
        raise ValueError("noise_key: expected a secret under differential privacy, got none")
    inputs = _Inputs(previous, updates, {c: weight_of(config, stats[c]) for c in updates})
    result = aggregate_in_memory(
        terms, members, inputs, lambda c: seeded_random(seed, department, round_num, c, noise_key)
    )
    return step_to_mean(config, round_num, previous, result, optimizer_state)


def round_terms(
    config: FederationConfig,
    previous: Mapping[str, torch.Tensor],
    *,
    run: str,
    department: str,
    round_num: int,
    invited: int,
) -> Terms:
    """The terms of a department's round, as each of its clients knows them from its own config.

    Args:
        config: the ``federation`` block: ``masking`` and ``weighting``, and under differential privacy ``privacy``.
        previous: θ_d, the shared factors; their names and shapes count.
        run: name of the run.
        department: whose sum is taken.
        round_num: from 1.
        invited: number of clients that may take part.

    Raises:
        ValueError: if a number is out of range, or there are too many clients for little noise.
    """
    from fl_lightning.privacy.secure_aggregation.noise_shares import plan_noise
    from fl_lightning.privacy.secure_aggregation.terms import NoiseTerms, Terms

    privacy = config.privacy
    noise = NoiseTerms(privacy.clip, privacy.noise_multiplier, privacy.curious_clients)
    masking, names = config.masking, sorted(previous)
    layout = ";".join(f"{name}:{tuple(previous[name].shape)}" for name in names)
    terms = Terms(
        run=run,
        group=department,
        round_num=round_num,
        invited=invited,
        size=sum(previous[name].numel() for name in names),
        bound=masking.bound,
        max_weight=_max_weight(config),
        threshold=masking.threshold,
        min_clients=masking.min_clients,
        layout=hashlib.sha256(layout.encode()).hexdigest(),
        noise=noise if config.guard.name == "dp" else None,
    )
    if terms.noise is not None:
        plan_noise(terms)  # refuses what the ring has no room for
    return terms


def step_to_mean(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    result: SecureMean,
    optimizer_state: Mapping[str, torch.Tensor],
) -> DepartmentStep:
    """A department's step to the mean that a round of secure aggregation has given.

    Args:
        config: the ``federation`` block: ``flora`` and ``server``.
        round_num: from 1.
        previous: θ_d, the shared factors.
        result: the mean of what the clients have changed, in the order of `changes_of`.
        optimizer_state: `DepartmentStep.optimizer_state` of the round before; empty at the start.
    """
    names = sorted(previous)
    target: dict[str, torch.Tensor] = {}
    changes = torch.split(torch.from_numpy(result.mean), [previous[name].numel() for name in names])
    for name, change in zip(names, changes, strict=True):
        target[name] = previous[name].double() + change.view(previous[name].shape)
    rate = step_size_of(config, round_num)
    ordered = {name: target[name] for name in previous}
    state, optimizer_state = apply_server_step(config, rate, previous, ordered, optimizer_state)
    clip = config.privacy.clip if config.guard.name == "dp" else None
    return DepartmentStep(state, optimizer_state, step_size=rate, clip=clip, masked=result)


def changes_of(update: Mapping[str, torch.Tensor], previous: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float64]:
    """What a client has changed, ``θ_c − θ_d`` in fp64, as one vector: tensors by name.

    Example:
        >>> changes_of({"b": torch.tensor([3.0]), "a": torch.ones(2)}, {"b": torch.ones(1), "a": torch.ones(2)})
        array([0., 0., 2.])
    """
    changes = Residual(update, previous)
    return np.asarray(torch.cat([changes[name].flatten() for name in sorted(previous)]).numpy())


class _Inputs(Mapping[str, tuple[npt.NDArray[np.float64], int]]):
    """{client_id: (its changes as a vector, its weight)}; the vector is made when it is read."""

    def __init__(
        self,
        previous: Mapping[str, torch.Tensor],
        updates: Mapping[str, Mapping[str, torch.Tensor]],
        weights: Mapping[str, int],
    ) -> None:
        self._previous, self._updates, self._weights = previous, updates, weights

    def __getitem__(self, client_id: str) -> tuple[npt.NDArray[np.float64], int]:
        return changes_of(self._updates[client_id], self._previous), self._weights[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)


def weight_of(config: FederationConfig, stats: ClientStats) -> int:
    """A client's weight, which it knows itself.

    Args:
        config: the ``federation`` block: ``weighting``.
        stats: of the client.
    """
    return {"examples": stats.num_examples, "tokens": stats.num_tokens}.get(config.weighting, 1)


def _max_weight(config: FederationConfig) -> int:
    """The largest weight, which everybody knows before the round."""
    return 1 if config.weighting == "uniform" else config.masking.max_weight


def equal_parts(total: int, client_ids: Sequence[str]) -> dict[str, int]:
    """A department's sum of weights in equal parts, as if each client had as many records as the others.

    Example:
        >>> equal_parts(8, ["hr/a", "hr/b", "hr/c"])
        {'hr/a': 3, 'hr/b': 3, 'hr/c': 2}
    """
    part, rest = divmod(total, len(client_ids))
    return {client_id: part + (index < rest) for index, client_id in enumerate(client_ids)}
