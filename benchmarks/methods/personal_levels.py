"""What a client gains by choosing its level: own adapter, department, cluster, all, or a mixture; and the controls.

    python -m benchmarks.methods.personal_levels conflict even departments [--seeds 3] [--first 1] [--rounds 12]
        [--records 16] [--eval 12] [--selection 0.25] [--rivals ditto apfl fedalt]
        [--methods default recommended methods/fedsa_lora methods/central] [--config recommended] [--own 2] [--ways]
        [--output DIR]

Each seed has a separate federation (`benchmarks/methods/federations.py`; departments are the bundled ones, of other
seeds). `fit` and `personalize` run as a user starts them, with a refit. Beside them, on the same held-out records:

=================  ================================================================================================
ensemble           own adapters of three seeds, predictions averaged: what no federation is needed for
best level         the one level, the same for all clients, that turned out lowest on the held-out records
strangers          as level and mixture, chosen by the selection records of another department's client
one adapter        made of the mixture in each of the ways of `personal.adapter`, with --ways
mean root          the mixture with the mean of the departments' products as its root instead of a trained one
one own adapter    level and mixture without the further own adapters that --own asks for
own, stopped       own adapters, each trained on all records up to the round that its selection records have chosen
rivals             own adapters of other methods (`configs/methods`) with the same records, rounds and refit
methods            what a client uses under another config, with the same records, rounds and refit: its department's
                   adapter, or, if it keeps a factor to itself, its own one
=================  ================================================================================================
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.common import markdown
from benchmarks.methods.federations import CLASSIC, build
from benchmarks.methods.personal_tables import rows
from fl_lightning.cli import main as command_line
from fl_lightning.config import PersonalConfig, RunConfig
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.personalization.mixture import mixture_losses
from fl_lightning.personalization.shared_levels import mean_of_departments
from fl_lightning.runs.artifacts import PERSONAL_LOSSES
from fl_lightning.runs.build import RunComponents, build_components, load_run_config
from fl_lightning.runs.chains import train_chain
from fl_lightning.runs.level_adapters import adapters_by_level
from fl_lightning.runs.personalize import choose, measure, one_adapters
from fl_lightning.runs.resume import load_finished_state
from fl_lightning.state import LoraState
from fl_lightning.storage.components import level_of, own_component
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_layout import PERSONAL_EVALUATION
from fl_lightning.training.local_clients import LocalClients

CONFIGS = Path(__file__).parents[2] / "configs"
ALL_RECORDS = ["--data.selection_fraction", 0, "--personal.refit", "false"]
"""What a refit comes to: all rounds on all records."""


def run(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed of a federation: the figures of every client, kept in files."""
    place = Path(args.output) / arm / f"seed_{seed}"
    options = options_of(arm, seed, args, place)
    if not (place / "figures.json").is_file():
        result = personalized(CONFIGS / f"{args.config}.yaml", options, place)
        write_json(place / "figures.json", {**result, **controls(place / "version_0", place, with_ways=args.ways)})
    figures: dict[str, Any] = read_json(place / "figures.json")
    figures["rivals"] = {}
    for method in args.rivals:
        more = ["--personal.levels", "[own, department]", "--personal.own_adapters", 1]
        result = personalized(CONFIGS / f"methods/{method}.yaml", [*options, *more], place / method)
        figures["rivals"][method] = {client_id: values["own"] for client_id, values in result["clients"].items()}
    figures["rivals"]["own, stopped"] = own_stopped(place)
    for name in args.methods:
        figures["rivals"][Path(name).name] = with_method(name, options, place / "methods" / Path(name).name)
    return figures


def options_of(arm: str, seed: int, args: argparse.Namespace, place: Path) -> list[Any]:
    """Options of `fit` for a seed of a federation, whose records are made first."""
    data = "bundled:departments"
    if arm != "departments":
        data = str(place / "data")
        if not (place / "data" / "structure.json").is_file():
            build(arm, place / "data", seed=seed, train=args.records, held_out=args.eval, classic=args.classic)
    options = ["--data", data, "--seed", seed, "--rounds", args.rounds, "--max-records", args.records]
    options += ["--data.selection_fraction", args.selection, "--logging.samples", 0, "--retention.client_exports", 1]
    options += ["--personal.own_adapters", args.own]
    return [*options, "--personal.refit", "true", "--personal.root", "trained"]


def personalized(config: Path, options: list[Any], place: Path) -> dict[str, Any]:
    """``personal_eval.json`` of a run, which is begun, continued, or finished already."""
    run_folder = place / "version_0"
    if not (run_folder / PERSONAL_EVALUATION).is_file():
        fit(config, options, place)
        command("personalize", "--run", run_folder)
    result: dict[str, Any] = read_json(run_folder / PERSONAL_EVALUATION)
    return result


def fit(config: Path, options: list[Any], place: Path) -> None:
    """Begin a run in `place`, or continue it."""
    start = ["--resume", place / "version_0"] if (place / "version_0").is_dir() else ["--config", config]
    command("fit", *start, *options, "--output", place)


def command(*words: Any) -> None:
    """Run a command as a user would type it."""
    if code := command_line([str(word) for word in words]):
        sys.exit(code)


def own_stopped(place: Path) -> dict[str, float]:
    """{client_id: held-out loss of its own adapter}, trained on all records up to the round that was best before."""
    if not (place / "own_stopped" / "figures.json").is_file():
        config = load_run_config(place / "version_0")
        components = build_components(config)
        clients = LocalClients(components.fabric, components.module, components.data, config.training, "auto")
        stopped = replace(config, training=replace(config.training, early_stopping=True))
        state = train_chain("own", place / "own_stopped", stopped, components, clients, refit=True)
        own = {c: held_out(clients, {"own": state.final_own_adapter(c)}, c)["own"] for c in clients.data}
        write_json(place / "own_stopped" / "figures.json", own)
    losses: dict[str, float] = read_json(place / "own_stopped" / "figures.json")
    return losses


def with_method(name: str, options: list[Any], place: Path) -> dict[str, float]:
    """{client_id: held-out loss of what the client uses under a config that trains on all its records}."""
    if not (place / "figures.json").is_file():
        fit(CONFIGS / f"{name}.yaml", [*options, *ALL_RECORDS], place)
        config = load_run_config(place / "version_0")
        components = build_components(config)
        clients = LocalClients(components.fabric, components.module, components.data, config.training, "auto")
        state = load_finished_state(components, place / "version_0", config)
        used = {
            c: dict(state.start_of(c)) if state.personal else state.final_adapter(client.department)
            for c, client in clients.data.items()
        }
        write_json(place / "figures.json", {c: held_out(clients, {"it": used[c]}, c)["it"] for c in used})
    losses: dict[str, float] = read_json(place / "figures.json")
    return losses


def controls(run_folder: Path, place: Path, *, with_ways: bool) -> dict[str, Any]:
    """Losses of the controls, all trained as the levels were: {control: {client_id: loss}}."""
    config = load_run_config(run_folder)
    components = build_components(config)
    clients = LocalClients(components.fabric, components.module, components.data, config.training, "auto")
    chosen_from, adapters = (levels_of(run_folder, config, components, clients, refit) for refit in (False, True))
    numbers = range(1, config.personal.own_adapters + 1)
    own = [{c: levels[own_component(number)] for c, levels in adapters.items()} for number in numbers][:3]
    for more in range(1, 4 - len(own)):  # other seeds draw other starts, orders and dropout; the records stay
        other = replace(config, seed=config.seed + 1000 * more)
        state = train_chain("own", place / f"own_{more}", other, components, clients, refit=True)
        own.append({client_id: state.final_own_adapter(client_id) for client_id in adapters})
    by_level = {c: held_out(clients, adapters[c], c) for c in adapters}
    ensembles = {c: np.concatenate(clients.target_losses([a[c] for a in own], clients.data[c].eval)) for c in adapters}
    names, true_records = list(clients.data), clients.data
    strangers = {c: names[(i + len(names) // 2) % len(names)] for i, c in enumerate(names)}
    clients.data = {c: replace(clients.data[c], selection=clients.data[strangers[c]].selection) for c in names}
    permuted_choices = choose(config, clients, chosen_from)
    clients.data = true_records
    permuted_ones = one_adapters(config, clients, adapters, permuted_choices, refit=True)
    permuted = measure(config.personal, clients, adapters, permuted_choices, permuted_ones)
    return {
        "ensemble": {c: float(mixture_losses(losses, np.full(3, 1 / 3)).mean()) for c, losses in ensembles.items()},
        "by_level": by_level,
        "ways": ways_to_one_adapter(config, clients, chosen_from, adapters) if with_ways else {},
        "one_own": with_one_own(config, clients, chosen_from, adapters) if len(numbers) > 1 else {},
        "mean_root": with_mean_root(config, clients, chosen_from, adapters),
        "strangers": {kind: {c: v[kind] for c, v in permuted["clients"].items()} for kind in PERSONAL_LOSSES},
    }


def with_one_own(
    config: RunConfig,
    clients: LocalClients,
    chosen_from: Mapping[str, Mapping[str, LoraState]],
    adapters: Mapping[str, Mapping[str, LoraState]],
) -> dict[str, dict[str, float]]:
    """{client_id: {kind: held-out loss}} with the first own adapter only."""
    before, after = (
        {
            c: {name: a for name, a in levels.items() if name == "own" or level_of(name) != "own"}
            for c, levels in by.items()
        }
        for by in (chosen_from, adapters)
    )
    choices = choose(config, clients, before)
    ones = one_adapters(config, clients, after, choices, refit=True)
    clients_measured = measure(config.personal, clients, after, choices, ones)["clients"]
    return {c: {kind: values[kind] for kind in PERSONAL_LOSSES} for c, values in clients_measured.items()}


def with_mean_root(
    config: RunConfig,
    clients: LocalClients,
    chosen_from: Mapping[str, Mapping[str, LoraState]],
    adapters: Mapping[str, Mapping[str, LoraState]],
) -> dict[str, float]:
    """{client_id: held-out loss of the mixture} with ``personal.root: mean``, the default."""
    before, after = map(replaced_root, (chosen_from, adapters))
    choices = choose(config, clients, before)
    losses = {c: np.concatenate(clients.target_losses(list(after[c].values()), clients.data[c].eval)) for c in after}
    return {c: float(mixture_losses(losses[c], choices[c].weights).mean()) for c in after}


def replaced_root(adapters: Mapping[str, Mapping[str, LoraState]]) -> dict[str, dict[str, LoraState]]:
    """The adapters with the mean of the departments' products as root."""
    departments = {client_id.split("/")[0]: levels["department"] for client_id, levels in adapters.items()}
    mean = mean_of_departments(departments, list(departments))
    return {c: {level: mean if level == "root" else a for level, a in levels.items()} for c, levels in adapters.items()}


def ways_to_one_adapter(
    config: RunConfig,
    clients: LocalClients,
    chosen_from: Mapping[str, Mapping[str, LoraState]],
    adapters: Mapping[str, Mapping[str, LoraState]],
) -> dict[str, dict[str, float]]:
    """{way: {client_id: held-out loss of its one adapter}}."""
    losses = {}
    for way in get_args(get_type_hints(PersonalConfig)["adapter"]):
        arm = replace(config, personal=replace(config.personal, adapter=way))
        choices = choose(arm, clients, chosen_from)
        ones = one_adapters(arm, clients, adapters, choices, refit=True)
        losses[way] = {c: held_out(clients, {way: ones[c]}, c)[way] for c in adapters}
    return losses


def levels_of(
    run_folder: Path, config: RunConfig, components: RunComponents, clients: LocalClients, refit: bool
) -> dict[str, dict[str, LoraState]]:
    """The adapters that `personalize` has trained."""
    if refit:
        state = train_chain("department", run_folder, config, components, clients, refit=True)
    else:
        checkpoint = newest_checkpoint(run_folder)
        assert checkpoint is not None
        state = checkpoint[0]
    return adapters_by_level(run_folder, config, components, clients, state, refit=refit)


def held_out(clients: LocalClients, levels: Mapping[str, LoraState], client_id: str) -> dict[str, float]:
    """Mean held-out loss of each level."""
    losses = np.concatenate(clients.target_losses(list(levels.values()), clients.data[client_id].eval)).mean(axis=0)
    return dict(zip(levels, map(float, losses), strict=True))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or other words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--eval", type=int, default=12)
    parser.add_argument("--selection", type=float, default=0.25)
    parser.add_argument("--rivals", nargs="*", default=[], metavar="METHOD")
    parser.add_argument("--methods", nargs="*", default=[], metavar="CONFIG", help="of configs/, without .yaml")
    parser.add_argument("--config", default="methods/fedavg", help="of the run, of configs/, without .yaml")
    parser.add_argument("--own", type=int, default=1, help="own adapters of a client among its levels")
    parser.add_argument("--ways", action="store_true", help="also make the one adapter in every way")
    parser.add_argument("--output", default="lightning_logs/personal_levels")
    parser.add_argument("--classic", type=Path, default=CLASSIC)
    return parser.parse_args(argv)


def main() -> None:
    """A table for each federation."""
    args = arguments()
    for arm in args.arms:
        seeds = [run(arm, seed, args) for seed in range(args.first, args.first + args.seeds)]
        head = (f"{arm}, {args.rounds} rounds, {args.seeds} seeds", "held-out loss", "against own", "hurt", "worst")
        print(markdown(head, rows(seeds)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
