"""Number of clusters of departments: this package against scikit-learn's KMeans on the raw matrix.

    python -m benchmarks.methods.clustering [--departments 1000] [--features 100000] [--repeats 1]
                                    [--projected-departments 10000] [--projected-features 8000]

Both try the same k = 1 … 6 with ten k-means++ restarts and the same seed. Ours includes the Gram product. The data are
fp32: planted groups of departments around a large shared start, with noise as large as the groups' own offsets. After
a turn on a small matrix, which loads the libraries, contestants alternate; scikit-learn takes a minute or more a turn.
On a machine with other work its threads wait for each other, which flatters ours: give both one thread there, with
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 in the environment.

Then more departments than the exact path takes: ours on a random projection, with the largest relative error of squared
distances over random pairs beside the error that the package states.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.console import Console
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from benchmarks.common import report
from fl_lightning.clustering.dissimilarity import from_rows
from fl_lightning.clustering.n_clusters import sharpest_bend
from fl_lightning.clustering.random_projection import (
    DISTANCE_ERROR,
    FAILURE_PROBABILITY,
    projection_size,
    random_projection,
)
from fl_lightning.clustering.registry import cluster

SEED, RESTARTS, MIN, MAX = 0, 10, 2, 5


def planted(departments: int, features: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """fp32 rows around a shared start, shape (departments, features), and the group of each."""
    draw = np.random.default_rng(SEED)
    group = np.arange(departments) % groups
    x = draw.standard_normal((departments, features), dtype=np.float32)
    x += draw.standard_normal((groups, features), dtype=np.float32)[group]
    x += 5 * draw.standard_normal(features, dtype=np.float32)
    return x, group


def ours(x: np.ndarray) -> tuple[int, dict[int, float], np.ndarray]:
    rows = from_rows([f"{i:06}" for i in range(len(x))], x, seed=SEED)
    result = cluster(rows, min_clusters=MIN, max_clusters=MAX, seed=SEED, n_init=RESTARTS)
    return result.n_clusters, result.inertias, np.array(list(result.assignments.values()))


def raw(x: np.ndarray) -> tuple[int, dict[int, float], np.ndarray]:
    tried = range(1, min(MAX + 1, len(x)) + 1)
    fits = {k: KMeans(k, n_init=RESTARTS, random_state=SEED, algorithm="lloyd").fit(x) for k in tried}
    inertias = {k: float(fit.inertia_) for k, fit in fits.items()}
    chosen = sharpest_bend(inertias, MIN, MAX)
    return chosen, inertias, fits[chosen].labels_


def compare(args: argparse.Namespace) -> None:
    x, group = planted(args.departments, args.features, args.groups)
    contestants = {"KMeans on the raw matrix": raw, "ours": ours}
    for run in contestants.values():
        run(x[:100, :100].copy())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    answers = {}
    for _ in range(args.repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            answers[name] = run(x)
            seconds[name].append(time.perf_counter() - started)
    (n_raw, inertias_raw, labels_raw), (n_ours, inertias_ours, labels_ours) = answers.values()
    ratios = {k: round(inertias_ours[k] / inertias_raw[k], 7) for k in inertias_raw}
    facts = {
        "clusters (raw, ours, planted)": (n_raw, n_ours, args.groups),
        "adjusted Rand index of ours with raw": round(adjusted_rand_score(labels_raw, labels_ours), 4),
        "adjusted Rand index of ours with planted": round(adjusted_rand_score(group, labels_ours), 4),
        "inertia of ours / raw, by k": ratios,
    }
    title = f"number of clusters, {args.departments} departments, {args.features} features, k 1 … 6, 10 restarts"
    report(title, seconds, "KMeans on the raw matrix", facts, args.json)


def projected(args: argparse.Namespace) -> None:
    x, group = planted(args.projected_departments, args.projected_features, args.groups)
    started = time.perf_counter()
    chosen, _, labels = ours(x)
    total = time.perf_counter() - started
    started = time.perf_counter()
    points = random_projection(x, seed=SEED)
    projection = time.perf_counter() - started
    first, second = np.random.default_rng(SEED + 1).integers(0, len(x), size=(2, 20_000))
    first, second = first[first != second], second[first != second]
    errors = np.empty(len(first))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        exact = float(((x[a] - x[b]).astype(np.float64) ** 2).sum())
        errors[i] = abs(float(((points[a] - points[b]).astype(np.float64) ** 2).sum()) / exact - 1)
    Console().print(
        f"{len(x)} departments, {x.shape[1]} features after a random projection to {projection_size(len(x))}"
    )
    Console().print(f"seconds: {total:.1f}, of them the projection {projection:.1f}")
    Console().print(f"clusters (ours, planted): {(chosen, args.groups)}")
    Console().print(f"adjusted Rand index of ours with planted: {adjusted_rand_score(group, labels):.4f}")
    Console().print(
        f"relative error of squared distances, {len(errors)} pairs: median {np.median(errors):.3f}, largest "
        f"{errors.max():.3f}; stated: at most {DISTANCE_ERROR} with probability {1 - FAILURE_PROBABILITY}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--departments", type=int, default=1000)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=4, help="planted groups of departments")
    parser.add_argument("--projected-departments", type=int, default=10_000, help="0 leaves this part out")
    parser.add_argument("--projected-features", type=int, default=8_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", default="lightning_logs/benchmarks/clustering.json")
    args = parser.parse_args()
    compare(args)
    if args.projected_departments:
        projected(args)


if __name__ == "__main__":
    main()
