"""Which of a client's records train, which are held out, and which choose between adapters.

Records are drawn by the run seed and the client's name, so a client's split depends on no other client.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from fl_lightning.data.client_files import ClientSource
from fl_lightning.data.exclusion import without_records
from fl_lightning.data.records import Record
from fl_lightning.seeding import derive_seed


def read_splits(
    source: ClientSource,
    *,
    max_records: int | None = None,
    eval_fraction: float = 0.2,
    seed: int = 0,
    exclude_records: Collection[str] = (),
) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records) of a client.

    Where none are set apart, `draw_held_out` chooses; a client's only record is then for training. The first
    `max_records` training records are kept. Both lists may be empty. Records whose digest is in `exclude_records` are
    dropped before all this, as if their lines were not there.

    Raises:
        InputError: naming file and line.
    """
    records = without_records(source.training_records(), exclude_records)
    set_apart = source.held_out_records()
    if set_apart is not None:
        return records[:max_records], without_records(set_apart, exclude_records)
    if len(records) < 2:
        return records[:max_records], []
    held_out = draw_held_out(len(records), source.department, source.client, eval_fraction, seed)
    training = [record for index, record in enumerate(records) if index not in held_out]
    return training[:max_records], [records[index] for index in sorted(held_out)]


def draw_held_out(num_records: int, department: str, client: str, eval_fraction: float, seed: int) -> set[int]:
    """Indices of the held-out records among a client's `num_records`, drawn by the seed and the client's name.

    Args:
        num_records: at least 2.
        department: of the client.
        client: its name.
        eval_fraction: share of held-out records; at least one record, and not all of them, are held out.
        seed: the run seed.

    Example:
        >>> len(draw_held_out(10, "hr", "client_0", 0.2, seed=0))
        2
    """
    count = min(num_records - 1, max(1, round(num_records * eval_fraction)))
    return _draw(num_records, count, derive_seed(seed, "split", department, client))


def draw_selection(num_records: int, department: str, client: str, selection: float, seed: int) -> set[int]:
    """Indices of the selection records among a client's `num_records` training records.

    Args:
        num_records: of the client.
        department: of the client.
        client: its name.
        selection: share of selection records if below 1, else their number; at least one record is left to train on.
        seed: the run seed.

    Example:
        >>> len(draw_selection(10, "hr", "client_0", 0.2, seed=0)), len(draw_selection(3, "hr", "a", 8, seed=0))
        (2, 2)
    """
    if not selection or num_records < 2:
        return set()
    wanted = round(selection) if selection >= 1 else max(1, round(num_records * selection))
    return _draw(num_records, min(num_records - 1, wanted), derive_seed(seed, "selection", department, client))


def _draw(num_records: int, count: int, seed: int) -> set[int]:
    order = list(range(num_records))
    random.Random(seed).shuffle(order)
    return set(order[:count])
