"""Could these groups of departments each be one pool of clients? A test against a null, from the clients' points.

Anderson 2001, "A new method for non-parametric multivariate analysis of variance" (PERMANOVA), for clients as what is
permuted; Langsrud 2005, "Rotation tests", for rotations in its place.

**Statistic.** Ward's trees of the departments inside the given groups say what more groups would explain: T_j for j
more groups. It is one curve, not one number, since clusters of departments show at a few groups and departments that
all differ show at many. Each T_j is measured in standard deviations from its mean over the draws, and the statistic is
the largest: ``max_j (T_j − mean_j) / sd_j``. What is observed counts as a draw, so that ``p = (number of draws at least
as large) / (number of draws)`` is valid whatever the statistic.

**Permutations.** If departments of one group are one pool, its clients (with their weights) are exchangeable: they are
dealt anew to the group's departments, which keep their sizes. For given groups this is exact: p ≤ 5 % in at most 5 % of
cases, for any distribution of clients. But chance deals alike clients to one department often where there are few: one
odd department among n of m clients has a p of at least ``n / C(n m, m)`` (2 × 3: 0.1; 4 × 3: 0.018; 6 × 2: 0.09).

**Rotations.** For given groups where that is fewer than `FEW` ways, residuals from the group means are rotated in the
space orthogonal to those means, by draws of the Haar measure. That pools the noise of all groups and has no such limit.
It is exact for normal noise with variance inversely proportional to the weight, any covariance between features, and
the same in all groups; noise that differs much between clients makes it reject too often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.sums_of_squares import Clients, ward_curves

FEW = 200
"""Fewer ways than this to choose the clients of one department: chance deals alike ones to it too often."""
_BLOCK = 1 << 22
"""Elements of one array of draws, 32 MiB in fp64."""


def arrangements(sizes: Sequence[int], groups: Sequence[int]) -> int:
    """In how many ways clients of each group can be dealt to its departments, those that differ in names alone as one.

    Args:
        sizes: number of clients of each department.
        groups: group of each department.

    Example:
        >>> arrangements([3, 3], [0, 0]), arrangements([3, 3, 3, 3], [0, 0, 1, 1]), arrangements([3] * 4, [0] * 4)
        (10, 100, 15400)
    """
    ways = 1
    for group in set(groups):
        own = [size for size, label in zip(sizes, groups, strict=True) if label == group]
        ways *= math.factorial(sum(own))
        ways //= math.prod(math.factorial(size) for size in own)
        ways //= math.prod(math.factorial(times) for times in Counter(own).values())
    return ways


def ways_of_one(sizes: Sequence[int], groups: Sequence[int]) -> float:
    """``C(clients of its group, clients of a department) // number of such departments``, the least of all departments.

    One odd department among others that are alike has a permutation p of at least one over this.

    Args:
        sizes: number of clients of each department.
        groups: group of each department; those of one department do not count.

    Example:
        >>> ways_of_one([3] * 4, [0] * 4), ways_of_one([3] * 4, [0, 0, 1, 1]), ways_of_one([5] * 4, [0] * 4)
        (55, 10, 3876)
    """
    found: list[float] = [math.inf]
    for group in set(groups):
        own = [size for size, label in zip(sizes, groups, strict=True) if label == group]
        if len(own) > 1:
            found += [math.comb(sum(own), size) // times for size, times in Counter(own).items()]
    return min(found)


def p_value(
    clients: Clients, groups: Sequence[int], *, draws: int = 499, seed: int, rotate: bool | None = None
) -> float:
    """How often the null shows as much structure inside the groups as the clients do.

    Args:
        clients: of n departments.
        groups: of each department, in sorted order of names; the null is that each group is one pool.
        draws: of the null.
        seed: of the draws.
        rotate: whether to rotate rather than permute; None rotates where there is more than one group and `ways_of_one`
            is less than `FEW`. Whether there is any structure at all, in one group, is always asked of permutations.

    Returns:
        p in [1 / (draws + 1), 1]; 1 where nothing can be seen: no group of two departments, or no spread.

    Raises:
        ValueError: groups do not fit the departments, or there are no draws.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> x = np.repeat(np.eye(2), 8, axis=0) + 0.1 * np.random.default_rng(2).standard_normal((16, 2))
        >>> names = [f"c{i:02}" for i in range(16)]
        >>> owner = {name: f"department {i // 4}" for i, name in enumerate(names)}
        >>> clients = Clients(from_gram(names, x @ x.T), owner)
        >>> p_value(clients, [0, 0, 0, 0], seed=0) <= 0.05, p_value(clients, [0, 0, 1, 1], seed=0) <= 0.05
        (True, False)
    """
    if len(groups) != len(clients.departments):
        raise ValueError(f"groups: got {len(groups)} labels, wanted one for each of {len(clients.departments)}")
    if draws < 1:
        raise ValueError(f"draws: got {draws}, wanted at least 1; 499 see a p of 0.002")
    if len(set(groups)) == len(groups):
        return 1.0
    if rotate is None:
        rotate = len(set(groups)) > 1 and ways_of_one(clients.sizes, groups) < FEW
    draw = np.random.default_rng(seed)
    observed = department_sums(clients.points, clients.mass, clients.sizes)
    null = _rotations(clients, groups, draws, draw) if rotate else _permutations(clients, groups, draws, draw)
    curves = np.concatenate([ward_curves(sums, mass, groups) for sums, mass in (observed, *null)])
    spread, scale = curves.std(axis=0), float(np.abs(curves).max())
    seen = spread > 1e-9 * scale
    if not seen.any():
        return 1.0
    statistic = ((curves - curves.mean(axis=0))[:, seen] / spread[seen]).max(axis=1)
    return float((statistic >= statistic[0] - 1e-9).mean())


def department_sums(points: Array, mass: Array, sizes: Iterable[int]) -> tuple[Array, Array]:
    """``Σ w x`` and ``Σ w`` of consecutive clients: shapes (draws, n, m) and (draws, n).

    Args:
        points: clients in the order of departments, shape (draws, n_clients, m) or, for one draw, without the first.
        mass: their weights, shape (draws, n_clients) or (n_clients,).
        sizes: clients of each department, at least 1 each.
    """
    if points.ndim == 2:
        points, mass = points[None], mass[None]
    first = np.cumsum([0, *sizes])[:-1]
    return np.add.reduceat(points * mass[:, :, None], first, axis=1), np.add.reduceat(mass, first, axis=1)


def _permutations(
    clients: Clients, groups: Sequence[int], draws: int, draw: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Sums of departments whose clients are dealt anew inside each group."""
    points, mass, pool = clients.points, clients.mass, np.asarray(groups)[clients.owner]
    for size in _blocks(draws, points.size):
        order = np.tile(np.arange(len(points)), (size, 1))
        for group in set(groups):
            places = np.flatnonzero(pool == group)
            order[:, places] = draw.permuted(np.tile(places, (size, 1)), axis=1)
        yield department_sums(points[order], mass[order], clients.sizes)


def _rotations(
    clients: Clients, groups: Sequence[int], draws: int, draw: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Sums of departments whose clients' residuals from the group means are rotated.

    With ``y = sqrt(w) (x − group mean)`` the sums of departments are ``S y``, S of rank r = n − k after projection. A
    rotation takes S y = L (basis of S) y, L of shape (n, r), to L F y', with y' the residuals in coordinates of their
    own space, shape (n_clients − k, m), and F a random orthonormal frame of r rows in it.
    """
    n, root = len(groups), np.sqrt(clients.mass)
    pool = np.asarray(groups)[clients.owner]
    means = (pool[:, None] == np.unique(pool)[None, :]) * root[:, None]
    means /= np.linalg.norm(means, axis=0)
    full = np.linalg.qr(means, mode="complete")[0]
    own = full[:, means.shape[1] :]  # orthonormal basis of what is orthogonal to the group means
    residuals = own.T @ (root[:, None] * clients.points)
    takes = ((clients.owner[None, :] == np.arange(n)[:, None]) * root) @ own
    left, values, _ = np.linalg.svd(takes, full_matrices=False)
    rank = n - means.shape[1]
    left = left[:, :rank] * values[:rank]
    mass = np.bincount(clients.owner, clients.mass)
    for size in _blocks(draws, max(residuals.shape) * n):
        frames = np.linalg.qr(draw.standard_normal((size, residuals.shape[0], rank)))[0].transpose(0, 2, 1)
        yield left @ (frames @ residuals), np.tile(mass, (size, 1))


def _blocks(draws: int, elements: int) -> Iterator[int]:
    """Sizes of blocks of draws, of `elements` numbers each, that keep memory small."""
    size = max(1, _BLOCK // max(elements, 1))
    for first in range(0, draws, size):
        yield min(size, draws - first)
