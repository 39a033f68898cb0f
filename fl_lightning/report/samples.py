"""What the base model and a department's adapter say to held-out prompts, kept so that no report asks twice.

The prompts and the right answers are records of the departments: who reads the page reads them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import InputError
from fl_lightning.report.elements import Answer, Section
from fl_lightning.runs.lenient import mapping, text
from fl_lightning.storage.files import read_json, write_json

if TYPE_CHECKING:
    from fl_lightning.config import RunConfig
    from fl_lightning.data.records import Record

log = logging.getLogger(__name__)

FILE = "samples.json"
MAX_NEW_TOKENS = 48


def samples(run_folder: Path, target: Path, count: int) -> Section:
    """Answers side by side, out of ``samples.json`` where it holds them, else generated and put there.

    Args:
        run_folder: the run.
        target: folder of ``samples.json``.
        count: prompts a department; 0 loads no model and shows none.
    """
    section = Section("samples", "Sample answers")
    if count == 0:
        section.missing.append("No samples: the report was made with --samples 0.")
        return section
    adapters = digests(run_folder)
    if not adapters:
        section.missing.append("No samples: there is no adapter in adapters/ yet.")
        return section
    try:
        found = _kept(target / FILE, adapters, count)
        if found is None:
            found = generated(run_folder, count)
            write_json(target / FILE, _as_json(found, adapters, count))
    except InputError as error:
        log.warning("no sample answers: %s", error)
        section.missing.append(f"No samples: {text(error)}")
        return section
    section.answers = {name: answers[:count] for name, answers in found.items()}
    section.text.append(
        f"Held-out prompts with the record's own answer, and greedy answers of up to {MAX_NEW_TOKENS} tokens by the "
        "base model and by the department's adapter. This part of the page holds records of the departments; a report "
        "made with --samples 0 holds none."
    )
    return section


def digests(run_folder: Path) -> dict[str, str]:
    """{department or group: SHA-256 of its adapter's weights}."""
    whole = run_folder.resolve()
    paths = sorted(run_folder.glob("adapters/*/adapter_model.safetensors"))
    inside = [p for p in paths if p.is_file() and p.resolve().is_relative_to(whole)]
    return {p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in inside}


def _kept(path: Path, adapters: Mapping[str, str], count: int) -> dict[str, list[Answer]] | None:
    """The answers in a file, if they are these adapters' and enough; None otherwise."""
    try:
        value = mapping(read_json(path)) if path.exists() else {}
    except InputError:
        return None
    enough = value.get("samples")
    if value.get("adapters") != dict(adapters) or not isinstance(enough, int) or enough < count:
        return None
    found: dict[str, list[Answer]] = {}
    for name, answers in mapping(value.get("departments")).items():
        for answer in answers if isinstance(answers, list) else []:
            fields = mapping(answer)
            said = {key: fields.get(key) for key in ("client", "prompt", "reference", "base", "adapter")}
            if not all(isinstance(own, str) for own in said.values()):
                return None
            found.setdefault(name, []).append(Answer(**{key: str(own) for key, own in said.items()}))
    return found or None


def _as_json(found: Mapping[str, list[Answer]], adapters: Mapping[str, str], count: int) -> dict[str, Any]:
    departments = {name: [asdict(answer) for answer in answers] for name, answers in found.items()}
    return {
        "samples": count,
        "max_new_tokens": MAX_NEW_TOKENS,
        "adapters": dict(adapters),
        "departments": departments,
    }


def generated(run_folder: Path, count: int) -> dict[str, list[Answer]]:
    """{department: answers}, greedy, on the CPU.

    Raises:
        InputError: if the run's config, base model, data or adapters cannot be used.
    """
    from fl_lightning.evaluation.samples import take_samples
    from fl_lightning.modeling.lora import collect_lora_state, read_lora_adapter
    from fl_lightning.runs.build import build_components, load_run_config
    from fl_lightning.training.local_clients import LocalClients

    config = load_run_config(run_folder)
    on_cpu = replace(config.fabric.alone(), accelerator="cpu", precision="fp32")
    components = build_components(replace(config, fabric=on_cpu, output=str(run_folder)))
    clients = LocalClients(components.fabric, components.module, components.data, config.training)
    initial = collect_lora_state(components.module.model)
    places = {client.department: run_folder / "adapters" / client.department for client in components.data.values()}
    # A run's adapters of another rank are written with the scale of the others.
    adapters = {d: read_lora_adapter(place, initial, any_rank=True) for d, place in places.items() if place.is_dir()}
    log.info("asking %d departments for %d answers each", len(adapters), count)
    taken = take_samples(
        clients, components.tokenizer, components.data, initial, adapters, count=count, max_new_tokens=MAX_NEW_TOKENS
    )
    texts, asked, found = _texts(config), Counter[str](), dict[str, list[Answer]]()
    for sample in taken:
        record = texts[sample.client_id][asked[sample.client_id]]
        asked[sample.client_id] += 1
        prompt, reference = _words(record) or (sample.prompt, sample.reference)
        answer = Answer(sample.client_id.split("/", 1)[1], prompt, reference, sample.base, sample.adapter)
        found.setdefault(sample.department, []).append(answer)
    return found


def _texts(config: RunConfig) -> dict[str, list[Record]]:
    """{client_id: held-out records as they were written}, in the order in which they are tokenised."""
    from fl_lightning.clustering.tree import teams
    from fl_lightning.data.layout import find_clients, read_splits

    team, own = teams(config.federation.hierarchy.groups), config.data
    found = {}
    for department, clients in find_clients(own.root, own.clients_per_dept).items():
        for files in clients:
            _, held_out = read_splits(files, eval_fraction=own.eval_fraction, seed=config.seed)
            found[f"{team.get(files.client_id, department)}/{files.client}"] = held_out
    return found


def _words(record: Record) -> tuple[str, str] | None:
    """(prompt, answer) in the record's own words; None for a record without a prompt."""
    last = max(i for i, turn in enumerate(record) if turn.supervised)
    before = record[:last]
    if not before:
        return None
    said = [turn.content if len(before) == 1 else f"{turn.role}: {turn.content}" for turn in before]
    return "\n\n".join(said), record[last].content
