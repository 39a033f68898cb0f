"""Grouping: which departments (or clients) belong together, from their LoRA states.

Pure functions in three steps: a representation makes a `Relation` (how far apart), a method makes labels for a given
number of clusters, and a rule chooses that number.

==================  ======================  =========================================================================
representation      needs                   two departments are alike where
==================  ======================  =========================================================================
raw                                         their A-matrices are near: mostly, where both moved little
delta               reference               A moved in the same direction from the shared start A₀
subspace                                    the rows of A span the same space; ranks may differ
subspace_residual   reference               what the rows of A span beyond those of A₀ is the same; ranks may differ
product             B                       the dense updates B A have the same direction; ranks may differ
cross_loss          losses                  each one's adapter does well on the other's held-out records
==================  ======================  =========================================================================

=============  =======================================  ===============================================================
method         sees                                     finds
=============  =======================================  ===============================================================
kmeans         points                                   round clusters; options n_init
agglomerative  distances, average linkage               clusters of any size, loners; nothing is random
spectral       affinities                               what is connected; options n_init
=============  =======================================  ===============================================================

=============  ==================================  ==============  ====================================================
select         options                             may answer 1    number of clusters
=============  ==================================  ==============  ====================================================
fixed                                              as told         min_clusters
elbow                                              no              where the inertia bends most
silhouette                                         no              where clusters are densest and best apart
eigengap                                           yes, by chance  where the eigenvalues of the affinities jump
dynamic        level, draws, detail                yes, tested     those that the departments' clients can tell apart
=============  ==================================  ==============  ====================================================

`smooth` averages relations over rounds, `settle` keeps a partition until another one is better twice, `match` keeps
the numbers of clusters, `assess` measures a partition.

Example:
    >>> import torch
    >>> rows = {"hr": [1.0, 9.0, 0.0], "it": [9.0, 1.0, 1.0], "law": [0.0, 9.0, 1.0], "ops": [9.0, 0.0, 1.0]}
    >>> states = {name: {"lora_A": torch.tensor([row])} for name, row in rows.items()}
    >>> relation = relate(states, "delta", reference={"lora_A": torch.zeros(1, 3)})
    >>> group(relation, method="agglomerative", select="silhouette", seed=0).assignments
    {'hr': 0, 'it': 1, 'law': 0, 'ops': 1}
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fl_lightning.clustering import dynamic, methods, n_clusters
from fl_lightning.clustering.dissimilarity import Relation, from_dissimilarity, from_gram, smooth
from fl_lightning.clustering.hysteresis import Hysteresis, no_partition, settle
from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.label_matching import match
from fl_lightning.clustering.methods import Method
from fl_lightning.clustering.n_clusters import Choice, Problem, Rule
from fl_lightning.clustering.quality import Quality, assess
from fl_lightning.clustering.representations import cross_loss, factors, product, subspace
from fl_lightning.clustering.sums_of_squares import Clients
from fl_lightning.errors import InputError, nearest

__all__ = [
    "METHODS",
    "REPRESENTATIONS",
    "SELECT",
    "Choice",
    "Clients",
    "Hysteresis",
    "Partition",
    "Problem",
    "Quality",
    "Relation",
    "assess",
    "from_dissimilarity",
    "from_gram",
    "group",
    "match",
    "no_partition",
    "relate",
    "settle",
    "smooth",
]

REPRESENTATIONS: dict[str, Callable[..., Relation]] = {
    "raw": factors.raw,
    "delta": factors.delta,
    "subspace": subspace.subspace,
    "subspace_residual": subspace.subspace_residual,
    "product": product.product,
    "cross_loss": cross_loss.cross_loss,
}
METHODS: dict[str, Method] = {
    "kmeans": methods.kmeans,
    "agglomerative": methods.agglomerative,
    "spectral": methods.spectral,
}
SELECT: dict[str, Rule] = {
    "fixed": n_clusters.fixed,
    "elbow": n_clusters.elbow,
    "silhouette": n_clusters.silhouette,
    "eigengap": n_clusters.eigengap,
    "dynamic": dynamic.dynamic,
}


@dataclass(frozen=True)
class Partition:
    """Departments in clusters.

    Attributes:
        assignments: {department: cluster}; numbered from 0 by first appearance in sorted order.
        choice: why so many.
    """

    assignments: dict[str, int]
    choice: Choice


def relate(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    representation: str = "delta",
    *,
    reference: Mapping[str, torch.Tensor] | None = None,
    losses: Array | None = None,
) -> Relation:
    """How far states are apart under a representation.

    Args:
        states: {name: LoRA state}.
        representation: one of `REPRESENTATIONS`.
        reference: the shared start; for those that need it, and left alone by others.
        losses: as in `cross_loss.cross_loss`; for those that need it, and left alone by others.

    Raises:
        InputError: no such representation, or what it needs is missing.
        ValueError: states that it cannot compare.
    """
    function = _known("representation", representation, REPRESENTATIONS)
    given: dict[str, Any] = {"reference": reference, "losses": losses}
    needs = options_of(function)
    for need in needs:
        if given[need] is None:
            raise InputError(f"representation {representation!r}: got no {need}, wanted it: pass {need}=")
    relation: Relation = function(states, **{need: given[need] for need in needs})
    return relation


def group(
    relation: Relation,
    *,
    method: str = "kmeans",
    select: str = "elbow",
    min_clusters: int = 2,
    max_clusters: int = 5,
    clients: Clients | None = None,
    seed: int,
    n_init: int = 10,
    **options: Any,
) -> Partition:
    """Departments in clusters: the rule chooses how many, the method which.

    Args:
        relation: of the departments.
        method: one of `METHODS`.
        select: one of `SELECT`.
        min_clusters: the smallest number of clusters; ``dynamic`` may answer 1 all the same.
        max_clusters: the largest.
        clients: of the departments; for ``dynamic``.
        seed: of everything that is drawn.
        n_init: restarts of k-means.
        options: of the rule.

    Raises:
        InputError: no such method or rule, or the rule has no such option.
        ValueError: bounds out of order, or what the rule refuses.
    """
    label, rule = _known("method", method, METHODS), _known("select", select, SELECT)
    for option in options:
        if option not in (known := options_of(rule)):
            wanted = f"wanted one of {', '.join(known)}{nearest(option, known)}" if known else "wanted none"
            raise InputError(f"select {select!r}: got option {option!r}, {wanted}")
    labels = functools.cache(lambda k: label(relation, k, seed=seed, n_init=n_init))
    choice = rule(Problem(relation, labels, min_clusters, max_clusters, clients, seed), **options)
    return Partition(dict(zip(relation.names, labels(choice.n_clusters), strict=True)), choice)


def options_of(function: Callable[..., Any]) -> list[str]:
    """Names of a registered function's options, its keyword-only arguments: what a representation needs, too."""
    found = inspect.signature(function).parameters.values()
    return [option.name for option in found if option.kind is option.KEYWORD_ONLY]


def _known(what: str, name: str, registry: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in registry:
        raise InputError(f"{what}: got {name!r}, wanted one of {', '.join(registry)}{nearest(name, registry)}")
    return registry[name]
