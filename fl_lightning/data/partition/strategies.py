"""Deal records out to departments and clients: by a column, or by the partitioners of flwr-datasets.

Schemes: ``iid`` deals shuffled records evenly; ``sizes`` in given proportions; ``dirichlet`` draws each label's shares
from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335; Yurochkin et al. 2019, arXiv 1905.12022); ``shards`` sorts by
label and deals runs of neighbours (McMahan et al. 2017, arXiv 1602.05629).
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fl_lightning.data.partition.columns import folder_names
from fl_lightning.data.partition.reader import EXTRA
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.files import natural_key

SchemeName = Literal["iid", "dirichlet", "shards", "sizes"]
SCHEMES = get_args(SchemeName)


@dataclass(frozen=True)
class Scheme:
    """How records are dealt into parts.

    Attributes:
        name: one of `SCHEMES`.
        alpha: dirichlet: small values give each part one label, large ones make all parts alike.
        shards: shards: number for each part.
        sizes: sizes: proportions of the parts.
        min_records: dirichlet: draw again until every part has at least this many records.
    """

    name: SchemeName = "iid"
    alpha: float = 0.5
    shards: int = 2
    sizes: Sequence[float] = ()
    min_records: int = 2


ClientIndices = dict[str, dict[str, list[int]]]
"""{department: {client: indices of its records, ascending}}."""


def deal(
    count: int,
    departments: int | Sequence[str],
    clients: int | Sequence[str],
    *,
    scheme: Scheme,
    client_scheme: Scheme,
    labels: Sequence[str] | None,
    seed: int,
) -> ClientIndices:
    """Who gets which records; every record goes to one client.

    Args:
        count: number of records.
        departments: their number, or each record's department.
        clients: their number in each department, or each record's client.
        scheme: deals records to departments, if `departments` is a number.
        client_scheme: deals a department's records to its clients, if `clients` is a number.
        labels: each record's label, for dirichlet and shards.
        seed: of all random draws.

    Raises:
        InputError: if there are too few records, or the scheme lacks what it needs.
    """
    everything = range(count)
    if isinstance(departments, int):
        seed_here = derive_seed(seed, "partition", "departments")
        whole = replace(scheme, min_records=scheme.min_records * clients) if isinstance(clients, int) else scheme
        parts = split_indices(everything, departments, whole, labels, seed_here, "--departments")
        first = {f"department_{number}": part for number, part in enumerate(parts)}
    else:
        first = _by_value(everything, departments, "--by")
    shares: ClientIndices = {}
    for department, indices in first.items():
        if isinstance(clients, int):
            seed_here = derive_seed(seed, "partition", "clients", department)
            where = f"--clients-per-dept: department {department}"
            parts = split_indices(indices, clients, client_scheme, labels, seed_here, where)
            shares[department] = {f"client_{number}": part for number, part in enumerate(parts)}
        else:
            shares[department] = _by_value(indices, clients, "--clients-by")
        for client, part in shares[department].items():
            if len(part) < 2:
                raise InputError(
                    f"{department}/{client}: expected at least 2 records, one to train on and one to hold out, "
                    f"got {len(part)}; ask for fewer departments or clients, or choose a larger --alpha"
                )
    return shares


def _by_value(indices: Sequence[int], values: Sequence[str], option: str) -> dict[str, list[int]]:
    names = folder_names([values[i] for i in indices], option)
    parts: dict[str, list[int]] = {name: [] for name in sorted(names.values(), key=natural_key)}
    for index in indices:
        parts[names[values[index]]].append(index)
    return parts


def split_indices(
    indices: Sequence[int], parts: int, scheme: Scheme, labels: Sequence[str] | None, seed: int, where: str
) -> list[list[int]]:
    """Indices dealt into parts, each ascending; all of them are dealt.

    Raises:
        InputError: if the scheme lacks what it needs, or would leave a part empty.
    """
    if scheme.name in ("dirichlet", "shards") and labels is None:
        raise InputError(f"--scheme {scheme.name}: no label; expected --label COLUMN")
    if scheme.name == "sizes" and len(scheme.sizes) != parts:
        raise InputError(
            f"--sizes: {where}: expected {parts} numbers, one for each part, got {len(scheme.sizes)}; inside "
            "departments, --client-sizes or another --client-scheme is used"
        )
    if parts > len(indices):
        raise InputError(
            f"{where}: expected at least one record for each of {parts} parts, got {len(indices)}; ask for fewer"
        )
    if parts == 1:
        return [list(indices)]
    order = list(indices)
    random.Random(seed).shuffle(order)  # iid and sizes cut it into runs, the others draw from it
    table = {"row": order, **({"label": [labels[i] for i in order]} if labels is not None else {})}
    try:
        import datasets
        from flwr_datasets import partitioner
    except ImportError as error:
        raise InputError(f"--scheme {scheme.name}: flwr-datasets is not installed; install it with {EXTRA}") from error
    dealer: Any
    if scheme.name == "iid":
        dealer = partitioner.IidPartitioner(parts)
    elif scheme.name == "sizes":
        dealer = partitioner.SizePartitioner(proportional_sizes(scheme.sizes, len(order)))
    elif scheme.name == "dirichlet":
        dealer = partitioner.DirichletPartitioner(
            parts, "label", float(scheme.alpha), min_partition_size=scheme.min_records, seed=seed
        )
    else:
        size = -(-len(order) // (parts * scheme.shards))  # rounded up, so that a remainder is not another shard
        dealer = partitioner.ShardPartitioner(parts, "label", shard_size=size, keep_incomplete_shard=True, seed=seed)
    dealer.dataset = datasets.Dataset.from_dict(table)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [sorted(dealer.load_partition(number)["row"]) for number in range(parts)]
    except ValueError as error:
        raise InputError(
            f"{where}: {scheme.name} leaves a part with fewer than {scheme.min_records} records in every draw; "
            "expected more records, fewer parts or a larger --alpha"
        ) from error


def proportional_sizes(sizes: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportions of `sizes` that add up to `total`, by largest remainders; each at least 1.

    Example:
        >>> proportional_sizes([4, 2, 1], 10)
        [6, 3, 1]
    """
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: int(exact[i]) - exact[i])
    while sum(counts) < total:
        counts[by_remainder[0]] += 1
        by_remainder.append(by_remainder.pop(0))
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts


def label_counts(shares: ClientIndices, labels: Sequence[str]) -> Mapping[str, dict[str, int]]:
    """{client_id: {label: number of its records}}, labels sorted."""
    names = sorted(set(labels), key=natural_key)
    counts = {}
    for department, clients in shares.items():
        for client, indices in clients.items():
            counter = Counter(labels[i] for i in indices)
            counts[f"{department}/{client}"] = {name: counter[name] for name in names}
    return counts
