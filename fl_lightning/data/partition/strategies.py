"""Dealing records out: by a column, or by the partitioners of flwr-datasets.

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
from typing import Any

from fl_lightning.data.partition.columns import folder_names
from fl_lightning.data.partition.reader import EXTRA
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.files import natural_key

SCHEMES = ("iid", "dirichlet", "shards", "sizes")


@dataclass(frozen=True)
class Scheme:
    """How records are dealt into parts.

    Attributes:
        name: one of `SCHEMES`.
        alpha: dirichlet: small is one label a part, large is all alike.
        shards: shards: so many for each part.
        sizes: sizes: proportions of the parts.
        least: dirichlet draws again until every part has so many records.
    """

    name: str = "iid"
    alpha: float = 0.5
    shards: int = 2
    sizes: Sequence[float] = ()
    least: int = 2


Shares = dict[str, dict[str, list[int]]]
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
) -> Shares:
    """Who gets which records; every record goes to one client.

    Args:
        count: how many records there are.
        departments: how many, or each record's department.
        clients: how many in each department, or each record's client.
        scheme: deals records to departments, where they are not named.
        client_scheme: deals a department's records to its clients, where they are not named.
        labels: each record's label, for dirichlet and shards.
        seed: everything is drawn from it.

    Raises:
        InputError: if there are too few records, or the scheme lacks what it needs.
    """
    everything = range(count)
    if isinstance(departments, int):
        seed_here = derive_seed(seed, "partition", "departments")
        whole = replace(scheme, least=scheme.least * clients) if isinstance(clients, int) else scheme
        parts = split(everything, departments, whole, labels, seed_here, "--departments")
        first = {f"department_{number}": part for number, part in enumerate(parts)}
    else:
        first = _by_value(everything, departments, "--by")
    shares: Shares = {}
    for department, indices in first.items():
        if isinstance(clients, int):
            seed_here = derive_seed(seed, "partition", "clients", department)
            where = f"--clients-per-dept: department {department}"
            parts = split(indices, clients, client_scheme, labels, seed_here, where)
            shares[department] = {f"client_{number}": part for number, part in enumerate(parts)}
        else:
            shares[department] = _by_value(indices, clients, "--clients-by")
        for client, part in shares[department].items():
            if len(part) < 2:
                raise InputError(
                    f"{department}/{client}: got {len(part)} records, wanted at least 2, one to train and one to hold "
                    "out; ask for fewer departments or clients, or choose a larger --alpha"
                )
    return shares


def _by_value(indices: Sequence[int], values: Sequence[str], option: str) -> dict[str, list[int]]:
    names = folder_names([values[i] for i in indices], option)
    found: dict[str, list[int]] = {name: [] for name in sorted(names.values(), key=natural_key)}
    for index in indices:
        found[names[values[index]]].append(index)
    return found


def split(
    indices: Sequence[int], parts: int, scheme: Scheme, labels: Sequence[str] | None, seed: int, where: str
) -> list[list[int]]:
    """Indices dealt into parts, each ascending; all of them are dealt.

    Raises:
        InputError: if the scheme lacks what it needs, or would leave a part empty.
    """
    if scheme.name in ("dirichlet", "shards") and labels is None:
        raise InputError(f"--scheme {scheme.name}: no label, wanted --label COLUMN to deal by")
    if scheme.name == "sizes" and len(scheme.sizes) != parts:
        raise InputError(
            f"--sizes: got {len(scheme.sizes)} for {where}, wanted {parts}, one for each part; inside departments "
            "--client-sizes or another --client-scheme count"
        )
    if parts > len(indices):
        raise InputError(
            f"{where}: got {len(indices)} records for {parts} parts, wanted at least one each; ask for fewer"
        )
    if parts == 1:
        return [list(indices)]
    order = list(indices)
    random.Random(seed).shuffle(order)  # iid and sizes cut runs, the others take what they need of it
    table = {"row": order, **({"label": [labels[i] for i in order]} if labels is not None else {})}
    try:
        import datasets
        from flwr_datasets import partitioner as of
    except ImportError as error:
        raise InputError(f"--scheme {scheme.name}: flwr-datasets is not installed; add it by {EXTRA}") from error
    dealer: Any
    if scheme.name == "iid":
        dealer = of.IidPartitioner(parts)
    elif scheme.name == "sizes":
        dealer = of.SizePartitioner(proportional(scheme.sizes, len(order)))
    elif scheme.name == "dirichlet":
        dealer = of.DirichletPartitioner(
            parts, "label", float(scheme.alpha), min_partition_size=scheme.least, seed=seed
        )
    else:
        size = -(-len(order) // (parts * scheme.shards))  # rounded up: a remainder is no shard of its own
        dealer = of.ShardPartitioner(parts, "label", shard_size=size, keep_incomplete_shard=True, seed=seed)
    dealer.dataset = datasets.Dataset.from_dict(table)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [sorted(dealer.load_partition(number)["row"]) for number in range(parts)]
    except ValueError as error:
        raise InputError(
            f"{where}: {scheme.name} leaves a part with fewer than {scheme.least} records in every draw, wanted more "
            "records, fewer parts or a larger --alpha"
        ) from error


def proportional(sizes: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportions of `sizes` that add up to `total`, by largest remainders; each at least 1.

    Example:
        >>> proportional([4, 2, 1], 10)
        [6, 3, 1]
    """
    exact = [total * size / sum(sizes) for size in sizes]
    found = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: int(exact[i]) - exact[i])
    while sum(found) < total:
        found[by_remainder[0]] += 1
        by_remainder.append(by_remainder.pop(0))
    while sum(found) > total:
        found[found.index(max(found))] -= 1
    return found


def label_counts(shares: Shares, labels: Sequence[str]) -> Mapping[str, dict[str, int]]:
    """{client_id: {label: how many of its records have it}}, labels sorted."""
    names = sorted(set(labels), key=natural_key)
    counts = {}
    for department, clients in shares.items():
        for client, indices in clients.items():
            own = Counter(labels[i] for i in indices)
            counts[f"{department}/{client}"] = {name: own[name] for name in names}
    return counts
