"""A base model that answers with any adapter of a run: what `serve` and `chat` share."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.evaluation.scoring import read_adapter
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.decoding import Decoder
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state, create_lora_model
from fl_lightning.state import LoraState
from fl_lightning.training.device import make_fabric


@dataclass(frozen=True)
class Answering:
    """A model ready to answer.

    Attributes:
        model: with LoRA layers, whose own adapter is not used.
        tokenizer: of the model.
        bank: of its adapters; attach it around a decoder's work.
        ends: tokens that end an answer.
        initial: a fresh adapter, whose shapes others are held against.
    """

    model: Any
    tokenizer: Any
    bank: AdapterBank
    ends: Collection[int]
    initial: LoraState

    def read(self, folder: Path) -> BankedAdapter:
        """The adapter in a folder.

        Raises:
            InputError: if there is none, or it does not fit the model.
        """
        adapter = read_adapter(folder, self.initial, adapter_scaling(self.model))
        digest = hashlib.sha256()
        for name in sorted(adapter.state):
            digest.update(adapter.state[name].numpy().tobytes())
        return self.bank.take(adapter.state, adapter.relative_scaling, f"fp_{digest.hexdigest()[:12]}")

    def decoder(self) -> Decoder:
        """A decoder without rows."""
        return Decoder(self.model, self.bank, self.ends)


def load_answering(config: RunConfig) -> Answering:
    """The base model of a run, on one device, ready to answer.

    Raises:
        InputError: if the model is not there, the device is not, or the model keeps a state instead of keys and values.
    """
    fabric, dtype = make_fabric(config.fabric.alone())
    base, tokenizer = load_base_model(config.model, dtype=dtype, device=fabric.device)
    if getattr(base, "_is_stateful", False):
        raise InputError(
            f"model.name_or_path: {config.model.name_or_path} is a {type(base).__name__}, which keeps a recurrent "
            "state; wanted a model with attention alone to answer several prompts at once"
        )
    if not config.model.load_in_4bit:
        base.to(fabric.device)
    lora = config.lora
    model = create_lora_model(
        base, lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules, use_rslora=lora.use_rslora
    )
    model.eval()
    return Answering(model, tokenizer, AdapterBank(model), end_tokens(base, tokenizer), collect_lora_state(model))


def end_tokens(base: Any, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: the tokenizer's end token, and those of the model's generation config."""
    own = getattr(base.generation_config, "eos_token_id", None)
    several = own if isinstance(own, list) else [own]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)
