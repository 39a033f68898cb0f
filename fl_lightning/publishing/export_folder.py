"""The folder that becomes a repository: the adapter or the merged model, and the model card; nothing else of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.modeling.merging import check_replaceable, merge_adapter
from fl_lightning.publishing.model_card import Subject, model_card
from fl_lightning.publishing.repo_names import in_adapter_config
from fl_lightning.publishing.run_facts import AdapterFacts, collect_facts
from fl_lightning.storage.files import atomic_folder, read_json
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

ADAPTER_FILES = ("README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class Source:
    """Where a repository comes from.

    Attributes:
        run_folder: the run.
        config: its config.
        name: the department, group or client.
        adapter: the folder of its adapter.
        repository: id on the Hub.
        base: the base model's id on the Hub; None where it is not known.
        licence: an identifier of the Hub; None for none.
    """

    run_folder: Path
    config: RunConfig
    name: str
    adapter: Path
    repository: str
    base: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Built:
    """A folder that is ready to be uploaded.

    Attributes:
        source: where it comes from.
        folder: where it is.
        files: names of the files to upload, sorted.
        facts: what its card rests on.
    """

    source: Source
    folder: Path
    files: list[str]
    facts: AdapterFacts

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def build(source: Source, folder: Path, *, merged: bool = False, dtype: str = "auto", copies: int = 1) -> Built:
    """Write the folder of a repository, whole or not at all.

    Args:
        source: what goes into it.
        folder: where to; one that stands there is replaced.
        merged: a whole model in place of the adapter.
        dtype: of the merged model's weights, as `merge_adapter` takes it.
        copies: how many models of this size the disk must have room for.

    Raises:
        InputError: if the adapter cannot be used, or the folder holds something else.
    """
    settings = _settings(source)
    facts = collect_facts(source.run_folder, source.name, source.config.federation.hierarchy.groups)
    targets = settings.get("target_modules")
    subject = Subject(
        source.repository,
        source.base,
        source.licence,
        merged,
        int(settings["r"]),
        tuple(sorted(map(str, targets))) if isinstance(targets, list) else (str(targets),),
    )
    card = model_card(source.config, facts, subject)
    if merged:
        merge_adapter(source.config.model, source.adapter, folder, dtype=dtype, copies=copies, card=card)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        return Built(source, folder, files, facts)
    check_replaceable(folder)
    read_lora_adapter(source.adapter)  # whole, and finite
    with atomic_folder(folder) as temporary:
        shutil.copyfile(source.adapter / ADAPTER_WEIGHTS, temporary / ADAPTER_WEIGHTS)
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Built(source, folder, list(ADAPTER_FILES), facts)


def _settings(source: Source) -> dict[str, Any]:
    """``adapter_config.json`` with the base's public name in place of its path on this machine.

    Raises:
        InputError: if it is no adapter's.
    """
    path = source.adapter / ADAPTER_CONFIG
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA" or not isinstance(settings.get("r"), int):
        raise InputError(f"{path}: wanted the config of a LoRA adapter, as fit writes it")
    model = source.config.model
    settings["base_model_name_or_path"] = in_adapter_config(model, source.base)
    settings["revision"] = model.revision if source.base == model.name_or_path else None
    return settings
