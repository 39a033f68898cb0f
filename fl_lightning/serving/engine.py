"""A base model that answers with any adapter of a run, for `serve` and `chat`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.data.chat_template import pin_chat_template
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.adapter_mixture import AdapterMixture, ServedModel
from fl_lightning.modeling.generation.decoding import Decoder
from fl_lightning.modeling.limits import is_recurrent
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state, create_lora_model
from fl_lightning.modeling.scaled_adapter import read_adapter
from fl_lightning.state import LoraState
from fl_lightning.storage.personal_models import ModelSource
from fl_lightning.training.device import make_fabric

BASE_MODEL = BankedAdapter({}, "fp_base")
"""The base model, beside adapters."""


@dataclass(frozen=True)
class Answering:
    """A model ready to answer.

    Attributes:
        model: base model with LoRA layers; their built-in adapter is not used.
        tokenizer: of the base model.
        bank: the adapters; attach it while a decoder works.
        ends: tokens that end an answer.
        initial: a new adapter; others must have its shapes.
    """

    model: Any
    tokenizer: Any
    bank: AdapterBank
    ends: Collection[int]
    initial: LoraState

    def read(self, folder: Path) -> BankedAdapter:
        """The adapter in a folder.

        Raises:
            InputError: there is none, or it does not fit the model.
        """
        adapter = read_adapter(folder, self.initial, adapter_scaling(self.model))
        digest = hashlib.sha256()
        for name in sorted(adapter.state):
            digest.update(adapter.state[name].numpy().tobytes())
        return self.bank.prepare(adapter.state, adapter.relative_scaling, f"fp_{digest.hexdigest()[:12]}")

    def decoder(self) -> Decoder:
        """A new decoder without rows."""
        return Decoder(self.model, self.bank, self.ends)


def read_model(source: ModelSource, read: Callable[[Path], BankedAdapter]) -> ServedModel:
    """The adapter in a folder, or a mixture of those in several; of a mixture with one adapter, that adapter.

    Args:
        source: where they are.
        read: reads one adapter, see `Answering.read`.

    Raises:
        InputError: one cannot be read, or does not fit the model.
    """
    if isinstance(source, Path):
        return read(source)
    adapters = tuple(BASE_MODEL if folder is None else read(folder) for folder in source.folders)
    if len(adapters) == 1:
        return adapters[0]
    parts = [f"{w!r} {adapter.fingerprint}" for w, adapter in zip(source.weights, adapters, strict=True)]
    digest = hashlib.sha256("\n".join(parts).encode())
    return AdapterMixture(adapters, source.weights, f"fp_{digest.hexdigest()[:12]}")


def load_answering(config: RunConfig) -> Answering:
    """Load the base model of a run on one device, ready to answer.

    Raises:
        InputError: model or device do not exist, or the model is recurrent.
    """
    fabric, dtype = make_fabric(config.fabric.alone())
    base, tokenizer = load_base_model(config.model, dtype=dtype, device=fabric.device)
    pin_chat_template(tokenizer, config.data)
    if is_recurrent(base):
        raise InputError(
            f"model.name_or_path: {config.model.name_or_path} is a {type(base).__name__}, a recurrent "
            "model; expected a model with attention only, to answer several prompts at once"
        )
    if not config.model.load_in_4bit:
        base.to(fabric.device)
    lora = config.lora
    model = create_lora_model(
        base, lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules, use_rslora=lora.use_rslora
    )
    model.eval()
    ends = find_end_tokens(tokenizer, base.generation_config)
    return Answering(model, tokenizer, AdapterBank(model), ends, collect_lora_state(model))
