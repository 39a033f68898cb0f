"""What is in a folder of departments, and what is wrong with it: all of it at once, where `fit` stops at the first.

Two records are the same if their turns are, after runs of white space became one space and case was dropped. A record
leaks if it, or its prompt alone, is held out for one client and trained on by any client.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fl_lightning import bundled
from fl_lightning.data.inspection.scan import Item, Measure, find_all, read_all
from fl_lightning.errors import InputError


@dataclass(frozen=True)
class Lengths:
    """Tokens of some records."""

    mean: float
    median: float
    longest: int
    supervised: float
    """Share of the tokens that the loss is taken on."""
    cut: int
    """Records longer than ``data.max_length``."""


@dataclass(frozen=True)
class ClientFacts:
    """What one client has.

    Attributes:
        duplicates: training records that the client has earlier in its file already.
        elsewhere: training records that another client trains on as well.
        leaks: held-out records that some client trains on, this one or another.
        prompt_leaks: held-out records of which only the prompt is trained on, with another response.
    """

    client_id: str
    train: int
    eval: int
    lengths: Lengths | None
    duplicates: int
    elsewhere: int
    leaks: int
    prompt_leaks: int


@dataclass
class Inspection:
    """Everything that was found."""

    root: str
    folder: str
    """The root as messages name it."""
    clients: list[ClientFacts] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What `fit` would refuse, each naming file and line."""
    warnings: list[str] = field(default_factory=list)
    """What `fit` takes, but a person should know."""
    leaks: list[dict[str, Any]] = field(default_factory=list)
    """{eval: where, train: [where], what: record or prompt}."""
    duplicates: list[list[str]] = field(default_factory=list)
    """Where each training record that is there several times stands."""

    def as_json(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def inspect(
    root: str | Path, measure: Measure, *, max_length: int = 512, eval_fraction: float = 0.2, seed: int = 0
) -> Inspection:
    """Look at every file of every client.

    Args:
        root: the folder, or ``bundled:departments``.
        measure: counts a record's tokens.
        max_length: records with more tokens are noted as cut.
        eval_fraction: share held out where a client is a single file.
        seed: the run seed, for that draw.

    Raises:
        InputError: if the root is no folder; whatever is wrong inside it comes back as one of the errors.
    """
    folder = bundled.resolve(str(root))
    if not os.path.isdir(folder):
        raise InputError(f"--data: {root} is not a folder; wanted a folder of departments")
    found = Inspection(str(root), str(folder))
    clients = find_all(folder, found)
    if not clients and not found.errors:
        found.errors.append(f"{root}: no department; wanted <department>/<client>/train.jsonl")
    items = [item for files in clients for item in read_all(files, measure, found, eval_fraction, seed)]
    by_client = defaultdict(list)
    for item in items:
        by_client[item.client_id].append(item)
    trained = _index((item for item in items if item.split == "train"), lambda item: item.text)
    prompts = _index((item for item in items if item.split == "train" and item.prompt), lambda item: item.prompt)
    found.duplicates = [[item.where for item in same] for same in trained.values() if len(same) > 1]
    for files in clients:
        own = by_client[files.client_id]
        found.clients.append(_facts(files.client_id, own, trained, prompts, max_length, found))
    _warn(found, max_length)
    return found


def _index(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def _facts(
    client_id: str,
    own: Sequence[Item],
    trained: Mapping[str, list[Item]],
    prompts: Mapping[str, list[Item]],
    max_length: int,
    found: Inspection,
) -> ClientFacts:
    train = [item for item in own if item.split == "train"]
    held_out = [item for item in own if item.split == "eval"]
    leaks = prompt_leaks = 0
    for item in held_out:
        if same := trained.get(item.text):
            leaks += 1
            found.leaks.append({"eval": item.where, "train": [other.where for other in same], "what": "record"})
        elif same := prompts.get(item.prompt):
            prompt_leaks += 1
            found.leaks.append({"eval": item.where, "train": [other.where for other in same], "what": "prompt"})
    times = Counter(item.text for item in train)
    elsewhere = sum(any(other.client_id != client_id for other in trained[item.text]) for item in train)
    again = sum(times.values()) - len(times)
    return ClientFacts(
        client_id, len(train), len(held_out), _lengths(own, max_length), again, elsewhere, leaks, prompt_leaks
    )


def _lengths(items: Sequence[Item], max_length: int) -> Lengths | None:
    if not items:
        return None
    tokens = [item.tokens for item in items]
    cut = sum(count > max_length for count in tokens)
    supervised = sum(item.supervised for item in items) / sum(tokens)
    return Lengths(round(fmean(tokens), 1), median(tokens), max(tokens), round(supervised, 4), cut)


def _warn(found: Inspection, max_length: int) -> None:
    """One warning for each kind of thing that a person should look at."""
    clients = found.clients
    leaks, prompts = sum(c.leaks for c in clients), sum(c.prompt_leaks for c in clients)
    counts = {
        "held-out records that some client trains on, so that their loss says little": leaks,
        "held-out records whose prompt some client trains on, with another response": prompts,
        "training records that the same client has more than once": sum(c.duplicates for c in clients),
        "training records that another client has too": sum(c.elsewhere for c in clients),
        f"records with more than {max_length} tokens, which are cut (data.max_length)": sum(
            c.lengths.cut for c in clients if c.lengths
        ),
    }
    found.warnings += [f"{what}: {count:,}" for what, count in counts.items() if count]
