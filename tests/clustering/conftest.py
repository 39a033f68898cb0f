"""Synthetic federations: clients of departments of clusters, in a space of many dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.sums_of_squares import DepartmentClients


def _unit(gram):
    lengths = np.sqrt(gram.diagonal())
    return np.clip(gram / lengths[:, None] / lengths[None, :], -1.0, 1.0)


def _federation(draw, clusters, n_clients, *, signal, shared=1.0, features=1000, own=0.0, rank=0, weights=None):
    """(dissimilarity of the departments, their clients): cosines, as under ``delta``.

    Clients of length 1 from ``shared + signal · (cluster + own · department) + noise``, each of about length 1; with
    `rank`, half of the noise lies in as many directions.
    """
    n = len(clusters)
    direction = draw.standard_normal((1 + max(clusters) + 1 + n, features)) / np.sqrt(features)
    center = shared * direction[0] + signal * (direction[1 + np.array(clusters)] + own * direction[-n:])
    noise = draw.standard_normal((n * n_clients, features)) / np.sqrt(features)
    if rank:
        few = draw.standard_normal((n * n_clients, rank)) @ draw.standard_normal((rank, features))
        noise += few / np.sqrt(rank * features)
    x = np.repeat(center, n_clients, axis=0) + noise
    gram = _unit(x @ x.T)
    names = [f"d{i:02}/c{j:02}" for i in range(n) for j in range(n_clients)]
    department_of = {name: name.split("/")[0] for name in names}
    client_weights = np.ones(len(names)) if weights is None else np.asarray(weights, dtype=float)
    mean = np.repeat(np.eye(n), n_clients, axis=1) * client_weights
    mean /= mean.sum(axis=1, keepdims=True)
    dissimilarity = from_gram(sorted(set(department_of.values())), _unit(mean @ gram @ mean.T))
    return dissimilarity, DepartmentClients(
        from_gram(names, gram), department_of, dict(zip(names, client_weights, strict=True))
    )


@pytest.fixture
def federation():
    """A function that draws a federation."""
    return _federation
