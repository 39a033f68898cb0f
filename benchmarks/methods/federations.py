"""Federations with a known answer, written as data roots: the same bytes from the same seed.

    python -m benchmarks.methods.federations NAME ROOT [--seed 0] [--train 32] [--eval 8]

=============  =====================================================================================================
conflict       six departments, one pool of CLINC utterances, the answer is a code for the topic; two code books
control        the same with one code book, and another mixture of topics in each department (Dirichlet, 0.3)
even           the same with one code book and one mixture: six departments of one pool
dolly          the eight categories of Dolly as departments
flan           six FLAN tasks as departments
tune_*         kinship by topic, to choose a signal on
held_*         kinship by topic, to report it on; no record of theirs is in a ``tune_*``
=============  =====================================================================================================

Records are drawn without replacement from the held-out and the training records of a source, by a seed hashed with the
department's name. ``structure.json`` beside the departments says the truth and how much of it is a matter of opinion.
The sources are the bundled departments and a folder of mixed, partly share-alike sets that does not ship: --classic.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.bundled import resolve
from fl_lightning.data.layout import find_clients, true_clusters

Records = list[dict[str, Any]]
CLASSIC = Path(__file__).parents[3] / "shared" / "data" / "classic"
CLIENTS = 3
TOPICS = ("travel", "kitchen_and_dining", "banking", "small_talk", "work", "auto_and_commute")
"""CLINC domains whose utterances are far apart."""

KIN: dict[str, tuple[list[list[str]], str]] = {
    "tune_service": (
        [["shell_git", "shell_docker"], ["policy_leave", "policy_travel"], ["banking", "credit_cards"], ["sums"]],
        "topic and format agree",
    ),
    "tune_intents": (
        [["home", "kitchen_and_dining"], ["travel", "auto_and_commute"], ["meta", "small_talk"]],
        "one format, CLINC's utterance and intent, everywhere; the pairs are ours",
    ),
    "tune_money": (
        [["banking", "credit_cards", "card_trouble", "refunds"], ["home", "kitchen_and_dining"], ["travel", "auto"]],
        "one format everywhere; money is asked about in CLINC's words and in BANKING77's",
    ),
    "held_desks": (
        [
            ["python_a", "python_b"],
            ["policy_performance", "policy_conflict"],
            ["card_arrival", "transfers"],
            ["reports"],
        ],
        "topic and format agree",
    ),
    "held_tasks": (
        [["snli", "qnli"], ["closed_qa", "information_extraction"], ["open_qa", "general_qa"]]
        + [["brainstorming", "creative_writing"]],
        "kinds of task: entailment, reading a passage, asking for knowledge, inventing",
    ),
    "held_talk": (
        [["Hotels_1", "Flights_1", "RentalCars_1"], ["Restaurants_1", "Events_1"], ["Banks_1"]],
        "one format, a conversation, everywhere: travelling, going out, a bank",
    ),
    "flan": (
        [["snli", "qnli"], ["paws_wiki"], ["bool_q"], ["arc_easy"], ["hellaswag"]],
        "FLAN's own families of tasks: both of the first are entailment",
    ),
    "dolly": (
        [["closed_qa", "information_extraction", "summarization"], ["open_qa", "general_qa"]]
        + [["brainstorming", "creative_writing"], ["classification"]],
        "ours: with a passage, asking for knowledge, inventing, sorting",
    ),
}
"""{federation: (departments that belong together, what that rests on)}."""

SOURCES = {
    "shell_git": ["departments/engineering/client_0"],
    "shell_docker": ["departments/engineering/client_1"],
    "python_a": ["departments/engineering/client_2"],
    "python_b": ["departments/engineering/client_3"],
    "policy_leave": ["departments/hr/client_0"],
    "policy_travel": ["departments/hr/client_1"],
    "policy_performance": ["departments/hr/client_2"],
    "policy_conflict": ["departments/hr/client_3"],
    "card_arrival": ["departments/customer_support/client_0"],
    "card_trouble": ["departments/customer_support/client_1"],
    "transfers": ["departments/customer_support/client_2"],
    "refunds": ["departments/customer_support/client_3"],
    "auto": ["clinc_domains/auto_and_commute"],
    "sums": ["gsm8k_mini/client_0"],
    "reports": ["tatqa_mini/client_0"],
}
"""Folders of the departments that are not called as their folder is."""

FOLDERS = ("clinc_domains", "dolly_categories", "flan_tasks", "sgd_chat")


def read(department: str, classic: Path) -> Records:
    """All records of a department's source, each once, in file order."""
    places = SOURCES.get(department) or [f"{f}/{department}" for f in FOLDERS if (classic / f / department).is_dir()]
    assert len(places) == 1, f"{department}: wanted one source, got {places}"
    bundled, name = places[0].startswith("departments/"), places[0].removeprefix("departments/")
    folder = resolve("bundled:departments") / name if bundled else classic / name
    lines = [line for split in ("train", "eval") for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return [json.loads(line) for line in dict.fromkeys(lines) if line.strip()]


def shuffled(records: Sequence[dict[str, Any]], seed: int, name: str) -> Records:
    """The records in an order of their own."""
    found = list(records)
    random.Random(f"{seed}/{name}").shuffle(found)
    return found


def code_books(design: str, topics: int) -> tuple[list[str], list[str]]:
    """Two names for every topic: ``letters`` no one is in both, ``turned`` the same ones moved on by one topic."""
    first = [chr(ord("A") + i) for i in range(topics)]
    other = [chr(ord("A") + topics + i) for i in range(topics)]
    return first, {"letters": other, "turned": first[1:] + first[:1]}[design]


def coded(seed: int, train: int, held_out: int, classic: Path, *, design: str, alpha: float | None) -> Any:
    """Departments that name an utterance's topic: by two books, or by one with topics drawn for each department."""
    rng, books = random.Random(f"{seed}/topics"), code_books(design, len(TOPICS))
    pool = {t: shuffled(read(topic, classic), seed, topic) for t, topic in enumerate(TOPICS)}
    names = [f"{'ab'[i % 2]}_{i}" for i in range(6)] if alpha is None else [f"office_{i}" for i in range(6)]
    departments = {}
    for i, name in enumerate(names):
        book = books[i % 2] if alpha is None else books[0]
        weights = [rng.gammavariate(alpha, 1.0) if alpha else 1.0 for _ in TOPICS]
        own: Records = []
        while len(own) < CLIENTS * (train + held_out):
            left = [w if pool[t] else 0.0 for t, w in enumerate(weights)]
            left = left if sum(left) > 0 else [float(bool(pool[t])) for t in range(len(TOPICS))]
            topic = rng.choices(range(len(TOPICS)), left)[0]
            own.append({"instruction": pool[topic].pop()["instruction"], "input": "", "output": book[topic]})
        departments[name] = own
    truth = [names[::2], names[1::2]] if alpha is None else [names]
    return departments, truth, f"{design}; utterances of one pool, no one is used twice"


def kin(seed: int, train: int, held_out: int, classic: Path, *, name: str) -> Any:
    """Departments whose truth is in `KIN`."""
    truth, why = KIN[name]
    found = {department: shuffled(read(department, classic), seed, department) for own in truth for department in own}
    return found, truth, why


BUILDERS: dict[str, Callable[..., Any]] = {
    "conflict": lambda *given: coded(*given, design="letters", alpha=None),
    "conflict_turned": lambda *given: coded(*given, design="turned", alpha=None),
    "control": lambda *given: coded(*given, design="letters", alpha=0.3),
    "even": lambda *given: coded(*given, design="letters", alpha=1e9),
    **{name: lambda *given, name=name: kin(*given, name=name) for name in KIN},
}


def build(
    name: str, root: Path, *, seed: int, train: int = 32, held_out: int = 8, classic: Path = CLASSIC
) -> dict[str, int]:
    """Write a federation.

    Args:
        name: one of `BUILDERS`.
        root: folder to write to.
        seed: of which records a client gets.
        train: records a client.
        held_out: records a client, beside them.
        classic: folder of the sets that do not ship.

    Returns:
        {department: true cluster}.

    Raises:
        SystemExit: without that folder.
    """
    if not classic.is_dir():
        raise SystemExit(
            f"no {classic}; wanted the folder of record sets that do not ship: {', '.join(FOLDERS)} and others"
        )
    departments, truth, why = BUILDERS[name](seed, train, held_out, classic)
    each = train + held_out
    for department, records in departments.items():
        assert len(records) >= CLIENTS * each, f"{name}: {department} has {len(records)} of {CLIENTS * each} records"
        for client in range(CLIENTS):
            own = records[client * each : (client + 1) * each]
            write(root / department / f"client_{client}", own[:train], own[train:])
    structure = {"true_department_clusters": truth, "why": why, "seed": seed}
    (root / "structure.json").write_text(json.dumps(structure, indent=1) + "\n")
    check(root, departments)
    return true_clusters(root) or {}


def write(folder: Path, train: Records, held_out: Records) -> None:
    """One client."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in (("train", train), ("eval", held_out)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def check(root: Path, departments: Mapping[str, Records]) -> None:
    """The root is as the package reads it, with the truth of every department, and no record is in it twice."""
    found = find_clients(root, CLIENTS)
    assert found.keys() == departments.keys() == (true_clusters(root) or {}).keys(), f"{root}: other departments"
    files = [path for own in found.values() for c in own for path in (c.train, c.eval) if path is not None]
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert len(set(lines)) == len(lines), f"{root}: {len(lines) - len(set(lines))} records are in it twice"


def main() -> None:
    """One federation on disk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=32)
    parser.add_argument("--eval", type=int, default=8)
    parser.add_argument("--classic", type=Path, default=CLASSIC)
    args = parser.parse_args()
    truth = build(args.name, args.root, seed=args.seed, train=args.train, held_out=args.eval, classic=args.classic)
    print(json.dumps(truth))


if __name__ == "__main__":
    main()
