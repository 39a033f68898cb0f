"""Loads a base model and its tokenizer from a Hub id, a local folder, a GGUF file, or this package.

The only module that deals with 4-bit quantization.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fl_lightning import bundled
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.limits import max_positions, vocabulary_size

log = logging.getLogger(__name__)

EXPECTED_MODEL = "a causal language model with config.json, all its weights and its tokenizer, or a GGUF file"


def load_base_model(config: ModelConfig, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The frozen base model, in eval mode, and its tokenizer.

    Args:
        config: the ``model`` block.
        dtype: of the weights (of the computation, in 4-bit).
        device: of a quantized base; Fabric places others.

    Returns:
        (model, tokenizer).

    Raises:
        InputError: if the model cannot be loaded; says what was tried.
    """
    source, arguments = _locate(config)
    quantization = {"quantization_config": _nf4(dtype), "device_map": {"": str(device)}} if config.load_in_4bit else {}
    try:
        tokenizer = _tokenizer(source, arguments)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **arguments, **quantization
        )
        # transformers only logs what is missing, and continues with random weights.
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"{len(missing)} weights missing, first {missing[0]}")
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers loads an adapter that lies beside a model
            raise ValueError("it comes with an adapter: merge it, or remove adapter_config.json")
        if os.path.isfile(Path(source) / "generation_config.json"):
            GenerationConfig.from_pretrained(source)  # transformers passes over a file that is broken
        ends = getattr(model.generation_config, "eos_token_id", None)
        if not all(isinstance(end, int | None) for end in (ends if isinstance(ends, list) else [ends])):
            raise ValueError(f"eos_token_id: expected ids of tokens in generation_config.json, got {ends!r:.80}")
    except Exception as error:  # broken models raise all kinds of errors in transformers, tokenizers, gguf and torch
        raise InputError(_load_error(config.name_or_path, source, error)) from error
    if unexpected := sorted(loading["unexpected_keys"]):
        log.warning(
            "%s: its files have weights for which %s, as config.json has it, has no place; left out: %d, first %s",
            config.name_or_path,
            type(model).__name__,
            len(unexpected),
            unexpected[0],
        )
    if getattr(model, "is_quantized", False):
        for module in model.modules():
            # On a CPU bitsandbytes permanently repacks a weight at its first forward pass without gradients. The packed
            # form needs in_features to be a multiple of the block size, and training needs the plain form.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if "gguf_file" in arguments:  # the weights are plain tensors now; PEFT must not treat them as quantized
        model.is_quantized, model.hf_quantizer = False, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    model.eval()
    return model, tokenizer


def load_tokenizer(config: ModelConfig) -> Any:
    """Load only the tokenizer.

    Raises:
        InputError: if the model cannot be loaded; says what was tried.
    """
    source, arguments = _locate(config)
    try:
        return _tokenizer(source, arguments)
    except Exception as error:  # as above
        raise InputError(_load_error(config.name_or_path, source, error)) from error


def load_generation_config(config: ModelConfig) -> GenerationConfig:
    """The generation config of the base model, or what its config says about generation.

    Raises:
        InputError: if the model cannot be loaded; says what was tried.
    """
    source, arguments = _locate(config)
    try:
        return GenerationConfig.from_pretrained(source, revision=arguments.get("revision"))
    except OSError:  # it has no generation_config.json
        return GenerationConfig.from_model_config(_model_config(config))


def context_length(config: ModelConfig) -> int | None:
    """Maximum number of tokens of prompt and answer together; None if the model's config does not state it.

    Raises:
        InputError: if the model cannot be loaded; says what was tried.
    """
    return max_positions(_model_config(config))


def embedding_size(config: ModelConfig) -> int | None:
    """Number of token ids that the model knows; the tokenizer may have more. None if its config does not state it.

    Raises:
        InputError: if the model cannot be loaded; says what was tried.
    """
    return vocabulary_size(_model_config(config))


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype of the weights in the base model's files; fp32 if they do not state it, as in a GGUF file.

    Raises:
        InputError: if the model cannot be loaded; says what was tried.

    Example:
        >>> stored_dtype(ModelConfig())
        torch.bfloat16
    """
    if bundled.resolve(config.name_or_path).suffix == ".gguf":
        return torch.float32
    dtype = _model_config(config).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _model_config(config: ModelConfig) -> Any:
    source, arguments = _locate(config)
    try:
        return AutoConfig.from_pretrained(source, **arguments)
    except Exception as error:  # as above
        raise InputError(_load_error(config.name_or_path, source, error)) from error


def _tokenizer(source: str, arguments: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    if len(tokenizer) <= len(tokenizer.added_tokens_encoder):
        raise ValueError("the tokenizer has no vocabulary: tokenizer.json is missing")
    return tokenizer


def _locate(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(name or path, keyword arguments) for transformers' ``from_pretrained``.

    Raises:
        InputError: if a local model does not exist.
    """
    name = config.name_or_path
    path = bundled.resolve(name)
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.name_or_path: no file {path}; expected a GGUF file, a folder or a Hub id")
        source, arguments["gguf_file"] = str(path.parent), path.name
    elif os.path.exists(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if not os.path.isfile(path / "config.json"):  # also false for a name that is too long
            raise InputError(f"model.name_or_path: no config.json in {path}; expected a model folder or a Hub id")
        source = str(path)
    else:
        source, arguments["revision"] = name, config.revision
    return source, arguments


def _nf4(dtype: torch.dtype) -> Any:
    import bitsandbytes  # noqa: F401  (slow to import, and only 4-bit needs it)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=False
    )


def _load_error(name: str, source: str, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if Path(source).exists():
        return f"model.name_or_path: {name} cannot be loaded from {source} ({reason}); expected {EXPECTED_MODEL}"
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    tried = f"folder ./{source}, the local Hub cache" + ("" if offline else ", the Hub")
    return (
        f"model.name_or_path: {name} not found; tried {tried}"
        f"{' (HF_HUB_OFFLINE=1)' if offline else ''}; name a local folder, bundled:tiny_base, or a Hub id ({reason})"
    )
