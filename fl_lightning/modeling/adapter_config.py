"""``adapter_config.json``: read by every key, and written so that older versions of PEFT read it too.

An adapter's tensors alone do not say what they do. Each key of its config sets the scale of a layer, chooses layers,
matters in training only, or must be at PEFT's default; any other value is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_json
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

SCALE_KEYS = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
LAYER_KEYS = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
DESCRIPTION_KEYS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip
OTHER_KEYS = {
    "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # for training
    "fan_in_fan_out",  # PEFT takes it from the kind of the layer
    "megatron_core", "qalora_group_size",  # of no effect without megatron_config and use_qalora
}  # fmt: skip
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base model's weights as they are."""

ALWAYS_WRITTEN = {
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout",
    "target_modules", "bias", "fan_in_fan_out", "modules_to_save", "init_lora_weights",
}  # fmt: skip
"""Keys that every version of PEFT since 0.3 knows; other keys are written only if they are not at their default."""


def read_adapter_config(folder: Path) -> PeftLoraConfig:
    """The config of a LoRA adapter, as PEFT reads it.

    Raises:
        InputError: if there is no adapter, PEFT refuses its config, or the installed PEFT does not know a key.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder}: no adapter; expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{path}: expected the config of a LoRA adapter (peft_type LORA), got {kind!r:.80}")
    known = {field.name for field in dataclasses.fields(PeftLoraConfig)}
    for key in sorted(values.keys() - known):
        if not _is_off(values[key]):
            raise InputError(
                f"{path}: {key}: expected keys of PEFT's LoraConfig, got one that the installed PEFT does not know; "
                "upgrade PEFT, or export the adapter as plain LoRA"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys that are of use in training only
            config = PeftLoraConfig(**{k: v for k, v in values.items() if k in known and k != "runtime_config"})
        _try_patterns(config)
        return config
    except (TypeError, ValueError, AttributeError, ImportError, re.error) as error:
        raise InputError(f"{path}: PEFT refuses it ({' '.join(str(error).split())[:200]})") from error


def _try_patterns(config: PeftLoraConfig) -> None:
    """Use the names and patterns of a config as for a layer: PEFT does not check their types when it reads them."""
    if not config.target_modules:
        raise ValueError("target_modules: expected names of layers, got none")
    is_adapted(config, "layers.0.a_layer")
    for patterns in (config.rank_pattern, config.alpha_pattern):
        (patterns or {}).get(get_pattern_key(patterns or {}, "layers.0.a_layer"))


def check_plain_lora(config: PeftLoraConfig, path: Path) -> None:
    """Check that an adapter is ``W0 x + s B A x`` in every layer, with nothing beside it.

    Args:
        config: of the adapter.
        path: of its file, for messages.

    Raises:
        InputError: naming the first key that asks for something else, such as use_dora or modules_to_save.
    """
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), _default(field)
        if field.name in SCALE_KEYS | LAYER_KEYS | DESCRIPTION_KEYS | OTHER_KEYS:
            continue
        if value != default and not (_is_off(value) and _is_off(default)):
            raise InputError(
                f"{path}: {field.name}: expected {default!r}, PEFT's default, since only plain LoRA layers can be "
                f"combined, got {value!r:.80}"
            )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise InputError(
            f"{path}: init_lora_weights: expected a start that keeps the base model's weights, got "
            f"{config.init_lora_weights!r:.80}, which changes them; convert the adapter to plain LoRA with PEFT"
        )


def is_adapted(config: PeftLoraConfig, layer: str) -> bool:
    """Whether PEFT puts an adapter on a linear layer.

    Args:
        config: of the adapter.
        layer: its name in the base model, such as ``model.layers.0.self_attn.q_proj``.
    """
    if config.target_modules == "all-linear":
        return True
    return bool(check_target_module_exists(config, layer))


def layer_scaling(config: PeftLoraConfig, layer: str, rank: int, path: Path) -> float:
    """The factor s of a layer's ``s B A x``.

    Args:
        config: of the adapter.
        layer: its name in the base model.
        rank: of the layer's tensors.
        path: of the config's file, for messages.

    Raises:
        InputError: if the config's rank is another one, or its alpha is not a number above 0.
    """
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    expected = ranks.get(get_pattern_key(ranks, layer), config.r)
    if expected != rank:
        raise InputError(f"{path}: r: expected the rank of the tensors, {rank}, got {expected!r:.80} ({layer})")
    alpha: Any = alphas.get(get_pattern_key(alphas, layer), config.lora_alpha)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"{path}: lora_alpha: expected a number above 0, got {alpha!r:.80}")
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def write_adapter_config(config: PeftLoraConfig, folder: Path) -> None:
    """Write a config without the keys that are at PEFT's defaults, which older versions of PEFT may not know.

    Args:
        config: of the adapter; ``inference_mode`` is written as true.
        folder: of the adapter.
    """
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    values = {
        name: sorted(value) if isinstance(value, set) else value  # the order of a set differs between processes
        for name, value in {**config.to_dict(), "inference_mode": True}.items()
        if name in ALWAYS_WRITTEN or (name != "peft_version" and value != defaults[name])
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "", "none")
