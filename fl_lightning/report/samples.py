"""Answers of the base model and of departments' adapters to held-out prompts, saved for the next report.

Prompts and reference answers are records of the departments: everybody who can read the page can read them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import InputError
from fl_lightning.report.elements import PromptAnswers, Section
from fl_lightning.runs.lenient import mapping, text
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_layout import ADAPTER_WEIGHTS, ADAPTERS, SAMPLES, adapter

if TYPE_CHECKING:
    from fl_lightning.config import RunConfig
    from fl_lightning.data.records import Record

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 48


def samples(run_folder: Path, target: Path, count: int) -> Section:
    """Answers side by side, from ``samples.json`` if it is up to date, else generated and saved there.

    Args:
        run_folder: the run.
        target: folder of ``samples.json``.
        count: prompts per department; 0 loads no model and shows none.
    """
    section = Section("samples", "Sample answers")
    if count == 0:
        section.missing.append("No samples: the report was made with --samples 0.")
        return section
    digests = adapter_digests(run_folder)
    if not digests:
        section.missing.append("No samples: there is no adapter in adapters/ yet.")
        return section
    try:
        answers = _load(target / SAMPLES, digests, count)
        if answers is None:
            answers = generate_answers(run_folder, count)
            write_json(target / SAMPLES, _to_json(answers, digests, count))
    except InputError as error:
        log.warning("no sample answers: %s", error)
        section.missing.append(f"No samples: {text(error)}")
        return section
    section.answers = {name: department_answers[:count] for name, department_answers in answers.items()}
    section.text.append(
        f"Held-out prompts with the record's answer, and greedy answers of up to {MAX_NEW_TOKENS} tokens by the base "
        "model and by the department's adapter. This section contains records of the departments; a report made with "
        "--samples 0 contains none."
    )
    return section


def adapter_digests(run_folder: Path) -> dict[str, str]:
    """{department or group: SHA-256 of its adapter's weights}."""
    root = run_folder.resolve()
    paths = sorted(run_folder.glob(f"{ADAPTERS}/*/{ADAPTER_WEIGHTS}"))
    inside = [p for p in paths if p.is_file() and p.resolve().is_relative_to(root)]
    return {p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in inside}


def _load(path: Path, digests: Mapping[str, str], count: int) -> dict[str, list[PromptAnswers]] | None:
    """The answers in a file; None if they are too few, malformed, or of other adapters."""
    try:
        value = mapping(read_json(path)) if path.exists() else {}
    except InputError:
        return None
    num_samples = value.get("samples")
    if value.get("adapters") != dict(digests) or not isinstance(num_samples, int) or num_samples < count:
        return None
    answers: dict[str, list[PromptAnswers]] = {}
    for department, items in mapping(value.get("departments")).items():
        for item in items if isinstance(items, list) else []:
            texts = {field.name: mapping(item).get(field.name) for field in fields(PromptAnswers)}
            if not all(isinstance(value, str) for value in texts.values()):
                return None
            answers.setdefault(department, []).append(PromptAnswers(**{k: str(v) for k, v in texts.items()}))
    return answers or None


def _to_json(answers: Mapping[str, list[PromptAnswers]], digests: Mapping[str, str], count: int) -> dict[str, Any]:
    departments = {name: [asdict(item) for item in items] for name, items in answers.items()}
    return {
        "samples": count,
        "max_new_tokens": MAX_NEW_TOKENS,
        "adapters": dict(digests),
        "departments": departments,
    }


def generate_answers(run_folder: Path, count: int) -> dict[str, list[PromptAnswers]]:
    """{department: greedy answers}, generated on the CPU.

    Raises:
        InputError: if the run's config, base model, data or adapters cannot be used.
    """
    from fl_lightning.evaluation.samples import take_samples
    from fl_lightning.modeling.lora import collect_lora_state, read_lora_adapter
    from fl_lightning.runs.build import build_components, load_run_config
    from fl_lightning.runs.canaries import without_canaries
    from fl_lightning.training.local_clients import LocalClients

    config = without_canaries(load_run_config(run_folder))
    on_cpu = replace(config.fabric.alone(), accelerator="cpu", precision="fp32")
    components = build_components(replace(config, fabric=on_cpu, output=str(run_folder)))
    clients = LocalClients(components.fabric, components.module, components.data, config.training)
    initial = collect_lora_state(components.module.model)
    departments = {client_id.split("/", 1)[0] for client_id in components.data}
    folders = {department: run_folder / adapter(department) for department in sorted(departments)}
    # A run saves adapters of another rank at the common scaling.
    adapters = {
        d: read_lora_adapter(folder, initial, any_rank=True) for d, folder in folders.items() if folder.is_dir()
    }
    log.info("generating %d answers for each of %d departments", count, len(adapters))
    samples = take_samples(
        clients, components.tokenizer, components.data, initial, adapters, count=count, max_new_tokens=MAX_NEW_TOKENS
    )
    records, num_used = _held_out_records(config, {sample.client_id for sample in samples}), Counter[str]()
    answers: dict[str, list[PromptAnswers]] = {}
    for sample in samples:
        record = records[sample.client_id][num_used[sample.client_id]]
        num_used[sample.client_id] += 1
        prompt, reference = _plain_texts(record) or (sample.prompt, sample.reference)
        client = sample.client_id.split("/", 1)[1]
        answers.setdefault(sample.department, []).append(
            PromptAnswers(client, prompt, reference, sample.base, sample.adapter)
        )
    return answers


def _held_out_records(config: RunConfig, client_ids: Container[str]) -> dict[str, list[Record]]:
    """{client_id: held-out records as text} of some clients, in the order in which they are tokenized."""
    from fl_lightning.clustering.tree import client_teams
    from fl_lightning.data.layout import find_clients
    from fl_lightning.data.splits import read_splits

    team_of, data = client_teams(config.federation.hierarchy.groups), config.data
    records = {}
    found = find_clients(data.root, data.max_clients, columns=data.columns, exclude=data.exclude)
    for department, clients in found.items():
        for source in clients:
            client_id = f"{team_of.get(source.client_id, department)}/{source.client}"
            if client_id in client_ids:
                _, records[client_id] = read_splits(
                    source,
                    eval_fraction=data.eval_fraction,
                    seed=config.seed,
                    exclude_records=data.exclude_records,
                )
    return records


def _plain_texts(record: Record) -> tuple[str, str] | None:
    """(prompt, answer) without the chat template; None for a record without a prompt."""
    answer = max(i for i, turn in enumerate(record) if turn.supervised)
    prompt = record[:answer]
    if not prompt:
        return None
    texts = [turn.content if len(prompt) == 1 else f"{turn.role}: {turn.content}" for turn in prompt]
    return "\n\n".join(texts), record[answer].content
