"""The folder of a repository: the adapter or the merged model, and the model card; nothing else of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.data.chat_template import pin_chat_template
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import load_generation_config, load_tokenizer
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.modeling.merging import check_replaceable, merge_adapter
from fl_lightning.publishing.model_card import CardSubject, model_card
from fl_lightning.publishing.repo_names import public_base_name
from fl_lightning.publishing.run_facts import AdapterFacts, collect_facts
from fl_lightning.storage.files import atomic_folder, read_json
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

ADAPTER_FILES = ("README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class ExportSource:
    """An adapter of a run, and the repository that it goes to.

    Attributes:
        run_folder: the run.
        config: its config.
        name: the department, group or client.
        adapter: the folder of its adapter.
        repository: its id on the Hub.
        base: the base model's id on the Hub; None if unknown.
        licence: an identifier of the Hub; None if not given.
    """

    run_folder: Path
    config: RunConfig
    name: str
    adapter: Path
    repository: str
    base: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class ExportFolder:
    """A folder that is ready to be uploaded.

    Attributes:
        source: the adapter and its repository.
        folder: path of the folder.
        files: names of the files to upload, sorted.
        facts: about the adapter, as its card shows them.
    """

    source: ExportSource
    folder: Path
    files: list[str]
    facts: AdapterFacts

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def build_export_folder(
    source: ExportSource, folder: Path, *, merged: bool = False, dtype: str = "auto", copies: int = 1
) -> ExportFolder:
    """Write the folder of a repository, completely or not at all.

    Args:
        source: the adapter and its repository.
        folder: to write; an earlier one is replaced.
        merged: whether to write a merged model instead of the adapter.
        dtype: of the merged model's weights, see `merge_adapter`.
        copies: number of models of this size for which the disk must have room.

    Raises:
        InputError: if the adapter cannot be used, or the folder contains other files.
    """
    adapter_config = _public_adapter_config(source)
    facts = collect_facts(source.run_folder, source.name, source.config.federation.hierarchy.groups)
    targets = adapter_config.get("target_modules")
    subject = CardSubject(
        source.repository,
        source.base,
        source.licence,
        merged,
        int(adapter_config["r"]),
        tuple(sorted(map(str, targets))) if isinstance(targets, list) else (str(targets),),
        () if merged else _unknown_end_tokens(source.config),
    )
    card = model_card(source.config, facts, subject)
    if merged:
        config = source.config
        merge_adapter(config.model, source.adapter, folder, data=config.data, dtype=dtype, copies=copies, card=card)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        return ExportFolder(source, folder, files, facts)
    check_replaceable(folder)
    read_lora_adapter(source.adapter)  # complete and finite
    with atomic_folder(folder) as temporary:
        shutil.copyfile(source.adapter / ADAPTER_WEIGHTS, temporary / ADAPTER_WEIGHTS)
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(adapter_config, indent=2, sort_keys=True) + "\n")
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return ExportFolder(source, folder, list(ADAPTER_FILES), facts)


def _unknown_end_tokens(config: RunConfig) -> tuple[int, ...]:
    """The tokens that end an answer if the base's generation config lacks one of them; none if it cannot be loaded."""
    try:
        tokenizer, generation = load_tokenizer(config.model), load_generation_config(config.model)
        pin_chat_template(tokenizer, config.data)
    except InputError:
        return ()
    ends, configured = find_end_tokens(tokenizer, generation), generation.eos_token_id
    known = configured if isinstance(configured, list) else [configured]
    return () if set(ends) <= set(known) else ends


def _public_adapter_config(source: ExportSource) -> dict[str, Any]:
    """``adapter_config.json`` with the base's public name instead of its path on this machine.

    Raises:
        InputError: if the file is not the config of a LoRA adapter.
    """
    path = source.adapter / ADAPTER_CONFIG
    value = read_json(path)
    if not isinstance(value, dict) or value.get("peft_type") != "LORA" or not isinstance(value.get("r"), int):
        raise InputError(f"{path}: expected the config of a LoRA adapter, as fit writes it, got something else")
    model = source.config.model
    value["base_model_name_or_path"] = public_base_name(model, source.base)
    value.pop("revision", None)
    if source.base == model.name_or_path and model.revision is not None:
        value["revision"] = model.revision
    return value
