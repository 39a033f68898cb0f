"""A clustering as data: who is in which cluster, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.int64]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Clustering:
    """Departments in clusters, and how the number of clusters was chosen.

    Attributes:
        assignments: {department: cluster id}; ids start at 0, in order of first appearance over sorted departments.
        inertias: {k: within-cluster sum of squared distances}: of every k up to ``max_clusters + 1`` under the rule
            ``elbow``, of the chosen k under the other rules.
        departments: the order of rows and columns of `cosine`.
        cosine: cosine similarity of the departments under the representation, shape (n, n). None if the representation
            has no inner product, or for more than 2,000 departments (`dissimilarity.EXACT_ROWS`).
        scores: {k: value that the rule compared}; empty under ``elbow``, which compares the inertias.
        p_values: {k: p of "k clusters are enough"}, under the rule ``dynamic``.
        quality: silhouette, Davies-Bouldin and Calinski-Harabasz indices, those that are defined.
    """

    assignments: dict[str, int]
    inertias: dict[int, float]
    departments: list[str]
    cosine: Array | None
    scores: dict[int, float] = field(default_factory=dict)
    p_values: dict[int, float] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(set(self.assignments.values()))

    @property
    def clusters(self) -> dict[int, list[str]]:
        """{cluster id: [departments]}."""
        return clusters_from_labels(self.assignments)


def clusters_from_labels(assignments: Mapping[Name, int]) -> dict[int, list[Name]]:
    """{cluster id: [names]} from {name: cluster id}, ids ascending."""
    return {c: [n for n in assignments if assignments[n] == c] for c in sorted(set(assignments.values()))}


def number_by_first_appearance(labels: Sequence[int] | IntArray) -> list[int]:
    """Rename labels to 0, 1, … in the order in which they first appear.

    Example:
        >>> number_by_first_appearance([7, 2, 7, 0])
        [0, 1, 0, 2]
    """
    new: dict[int, int] = {}
    return [new.setdefault(int(label), len(new)) for label in labels]
