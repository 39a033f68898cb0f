"""Could each of these groups of departments be one pool of clients? A permutation test on the clients' points.

Anderson 2001, "A new method for non-parametric multivariate analysis of variance" (PERMANOVA), with clients as the
units that are permuted; Langsrud 2005, "Rotation tests", for rotations instead of permutations.

**Statistic.** Ward's trees of the departments inside the given groups tell how much more groups would explain: T_j for
j more groups. It is a curve rather than one number, since clusters of departments show at few groups, and departments
that all differ show at many. Each T_j is measured in standard deviations from its mean over the draws, and the
statistic is the largest of them: ``max_j (T_j − mean_j) / sd_j``. The observed data count as one draw, so
``p = (number of draws at least as large) / (number of draws)`` is valid for any statistic.

**Permutations.** If the departments of a group are one pool, its clients (with their weights) are exchangeable: they
are reassigned at random to the group's departments, which keep their sizes. For given groups this is exact: p ≤ 5 % in
at most 5 % of cases, for any distribution of clients. With few clients, though, chance often assigns similar ones to
one department: one odd department among n of m clients has a p of at least ``n / C(n m, m)`` (2 × 3: 0.1; 4 × 3: 0.018;
6 × 2: 0.09).

**Rotations.** For given groups with fewer than `MIN_WAYS` such assignments, residuals from the group means are rotated
at random (Haar measure) in the space orthogonal to those means. This pools the noise of all groups and has no such
limit. It is exact for normal noise with variance inversely proportional to the weight, any covariance between features,
and the same distribution in all groups; noise that differs a lot between clients makes it reject too often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.sums_of_squares import DepartmentClients, ward_curves

MIN_WAYS = 200
"""With fewer ways than this to choose one department's clients, chance assigns similar ones to it too often."""
_BLOCK = 1 << 22
"""Elements of one array of draws, 32 MiB in fp64."""


def arrangements(sizes: Sequence[int], groups: Sequence[int]) -> int:
    """Number of ways to assign the clients of each group to its departments; swapping equal departments counts once.

    Args:
        sizes: number of clients of each department.
        groups: group of each department.

    Example:
        >>> arrangements([3, 3], [0, 0]), arrangements([3, 3, 3, 3], [0, 0, 1, 1]), arrangements([3] * 4, [0] * 4)
        (10, 100, 15400)
    """
    ways = 1
    for group in set(groups):
        group_sizes = [size for size, label in zip(sizes, groups, strict=True) if label == group]
        ways *= math.factorial(sum(group_sizes))
        ways //= math.prod(math.factorial(size) for size in group_sizes)
        ways //= math.prod(math.factorial(times) for times in Counter(group_sizes).values())
    return ways


def ways_of_one(sizes: Sequence[int], groups: Sequence[int]) -> float:
    """The smallest ``C(clients of the group, clients of a department) // number of such departments``.

    The permutation p of one odd department among similar ones is at least one over this.

    Args:
        sizes: number of clients of each department.
        groups: group of each department; groups of one department are ignored.

    Example:
        >>> ways_of_one([3] * 4, [0] * 4), ways_of_one([3] * 4, [0, 0, 1, 1]), ways_of_one([5] * 4, [0] * 4)
        (55, 10, 3876)
    """
    ways: list[float] = [math.inf]
    for group in set(groups):
        group_sizes = [size for size, label in zip(sizes, groups, strict=True) if label == group]
        if len(group_sizes) > 1:
            ways += [math.comb(sum(group_sizes), size) // times for size, times in Counter(group_sizes).items()]
    return min(ways)


def p_value(
    clients: DepartmentClients, groups: Sequence[int], *, draws: int = 499, seed: int, rotate: bool | None = None
) -> float:
    """How often random draws show at least as much structure inside the groups as the clients do.

    Args:
        clients: of n departments.
        groups: group of each department, in sorted order of names; the null hypothesis is that each group is one pool.
        draws: number of random draws.
        seed: seed of the draws.
        rotate: rotate instead of permuting; None rotates if there is more than one group and `ways_of_one` is less than
            `MIN_WAYS`. The question whether there is any structure at all (one group) is always tested by permutation.

    Returns:
        p in [1 / (draws + 1), 1]; 1 if nothing can be tested: no group of two departments, or no spread.

    Raises:
        ValueError: groups do not fit the departments, or there are no draws.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_rows
        >>> x = np.repeat(np.eye(2), 8, axis=0) + 0.1 * np.random.default_rng(2).standard_normal((16, 2))
        >>> names = [f"c{i:02}" for i in range(16)]
        >>> department_of = {name: f"department {i // 4}" for i, name in enumerate(names)}
        >>> clients = DepartmentClients(from_rows(names, x), department_of)
        >>> p_value(clients, [0, 0, 0, 0], seed=0) <= 0.05, p_value(clients, [0, 0, 1, 1], seed=0) <= 0.05
        (True, False)
    """
    if len(groups) != len(clients.departments):
        raise ValueError(
            f"groups: expected a label for each of {len(clients.departments)} departments, got {len(groups)}"
        )
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}; with 499 the smallest p is 0.002")
    if len(set(groups)) == len(groups):
        return 1.0
    if rotate is None:
        rotate = len(set(groups)) > 1 and ways_of_one(clients.sizes, groups) < MIN_WAYS
    generator = np.random.default_rng(seed)
    observed = department_sums(clients.points, clients.weights, clients.sizes)
    random_draws = (_rotations if rotate else _permutations)(clients, groups, draws, generator)
    curves = np.concatenate([ward_curves(sums, weights, groups) for sums, weights in (observed, *random_draws)])
    spread, scale = curves.std(axis=0), float(np.abs(curves).max())
    varies = spread > 1e-9 * scale
    if not varies.any():
        return 1.0
    statistic = ((curves - curves.mean(axis=0))[:, varies] / spread[varies]).max(axis=1)
    return float((statistic >= statistic[0] - 1e-9).mean())


def department_sums(points: Array, weights: Array, sizes: Iterable[int]) -> tuple[Array, Array]:
    """``Σ w x`` and ``Σ w`` of consecutive clients: shapes (draws, n, m) and (draws, n).

    Args:
        points: clients in the order of departments, shape (draws, n_clients, m), or (n_clients, m) for one draw.
        weights: their weights, shape (draws, n_clients) or (n_clients,).
        sizes: number of clients of each department, at least 1 each.
    """
    if points.ndim == 2:
        points, weights = points[None], weights[None]
    first = np.cumsum([0, *sizes])[:-1]
    return np.add.reduceat(points * weights[:, :, None], first, axis=1), np.add.reduceat(weights, first, axis=1)


def _permutations(
    clients: DepartmentClients, groups: Sequence[int], draws: int, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Sums of departments after clients are reassigned at random inside each group."""
    points, weights, group_of = clients.points, clients.weights, np.asarray(groups)[clients.department_index]
    for size in _block_sizes(draws, points.size):
        order = np.tile(np.arange(len(points)), (size, 1))
        for group in set(groups):
            indices = np.flatnonzero(group_of == group)
            order[:, indices] = generator.permuted(np.tile(indices, (size, 1)), axis=1)
        yield department_sums(points[order], weights[order], clients.sizes)


def _rotations(
    clients: DepartmentClients, groups: Sequence[int], draws: int, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Sums of departments after their clients' residuals from the group means are rotated.

    With ``y = sqrt(w) (x − group mean)`` the sums of departments are ``S y``, S of rank r = n − k after projection. A
    rotation maps S y = L (basis of S) y, L of shape (n, r), to L F y', with y' the residuals in coordinates of their
    space, shape (n_clients − k, m), and F a random orthonormal frame of r rows in it.
    """
    n, root = len(groups), np.sqrt(clients.weights)
    group_of = np.asarray(groups)[clients.department_index]
    means = (group_of[:, None] == np.unique(group_of)[None, :]) * root[:, None]
    means /= np.linalg.norm(means, axis=0)
    complement = np.linalg.qr(means, mode="complete")[0][:, means.shape[1] :]  # orthonormal, orthogonal to the means
    residuals = complement.T @ (root[:, None] * clients.points)
    sums = ((clients.department_index[None, :] == np.arange(n)[:, None]) * root) @ complement
    left, values, _ = np.linalg.svd(sums, full_matrices=False)
    rank = n - means.shape[1]
    left = left[:, :rank] * values[:rank]
    weights = np.bincount(clients.department_index, clients.weights)
    for size in _block_sizes(draws, max(residuals.shape) * n):
        frames = np.linalg.qr(generator.standard_normal((size, residuals.shape[0], rank)))[0].transpose(0, 2, 1)
        yield left @ (frames @ residuals), np.tile(weights, (size, 1))


def _block_sizes(draws: int, elements: int) -> Iterator[int]:
    """Sizes of blocks of draws, of `elements` numbers each, that keep memory small."""
    size = max(1, _BLOCK // max(elements, 1))
    for first in range(0, draws, size):
        yield min(size, draws - first)
