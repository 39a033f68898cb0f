"""Loading a base model and its tokenizer: Hub id, local folder, GGUF file, or the one inside the package.

The only place that knows 4-bit.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fl_lightning import bundled
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.attention import use_packed_attention

log = logging.getLogger(__name__)

WHOLE = "a causal language model with config.json, all its weights and its tokenizer, or a GGUF file"


def load_base_model(config: ModelConfig, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The frozen base model, in eval mode, and its tokenizer.

    Args:
        config: the ``model`` block.
        dtype: of the weights (of the computation, in 4-bit).
        device: where a quantised base is placed; others are placed by Fabric.

    Returns:
        (model, tokenizer).

    Raises:
        InputError: saying which model was wanted and what was tried.
    """
    source, arguments = _locate(config)
    quantised = {"quantization_config": _nf4(dtype), "device_map": {"": str(device)}} if config.load_in_4bit else {}
    try:
        tokenizer = _tokenizer(source, arguments)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **arguments, **quantised
        )
        # Where something is missing transformers only logs it, and goes on with random weights and an empty vocabulary.
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"{len(missing)} weights missing, first {missing[0]}")
    except Exception as error:  # what a broken model makes transformers, tokenizers, gguf and torch raise has no end
        raise InputError(_why(config.name_or_path, source, error)) from error
    if config.load_in_4bit:
        for module in model.modules():
            # bitsandbytes repacks a CPU weight for good at its first forward pass without gradients; the packed form
            # wants in_features to be a multiple of the block size, and training goes on with the plain one.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if "gguf_file" in arguments:  # the weights are plain tensors now; PEFT must not take them for quantised ones
        model.is_quantized, model.hf_quantizer = False, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    model.eval()
    use_packed_attention(model)
    return model, tokenizer


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer alone.

    Raises:
        InputError: saying which model was wanted and what was tried.
    """
    source, arguments = _locate(config)
    try:
        return _tokenizer(source, arguments)
    except Exception as error:  # as above
        raise InputError(_why(config.name_or_path, source, error)) from error


def context_length(config: ModelConfig) -> int | None:
    """Tokens that the model has positions for, prompt and answer together; None where its config does not say.

    Raises:
        InputError: saying which model was wanted and what was tried.
    """
    found = _model_config(config)
    length = getattr(found, "max_position_embeddings", None) or getattr(found, "n_positions", None)
    return int(length) if length else None


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """What the base's own files hold its weights in; fp32 where they do not say so, as those of a GGUF file.

    Raises:
        InputError: saying which model was wanted and what was tried.

    Example:
        >>> stored_dtype(ModelConfig())
        torch.bfloat16
    """
    if bundled.resolve(config.name_or_path).suffix == ".gguf":
        return torch.float32
    found = _model_config(config).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _model_config(config: ModelConfig) -> Any:
    source, arguments = _locate(config)
    try:
        return AutoConfig.from_pretrained(source, **arguments)
    except Exception as error:  # as above
        raise InputError(_why(config.name_or_path, source, error)) from error


def _tokenizer(source: str, arguments: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    if len(tokenizer) <= len(tokenizer.added_tokens_encoder):
        raise ValueError("the tokenizer has no vocabulary: tokenizer.json is missing")
    return tokenizer


def _locate(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(what transformers is asked for, with which arguments).

    Raises:
        InputError: if a local model is not there.
    """
    name = config.name_or_path
    path = bundled.resolve(name)
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.name_or_path: no file {path}; wanted a GGUF file, a folder or a Hub id")
        source, arguments["gguf_file"] = str(path.parent), path.name
    elif os.path.exists(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if not os.path.isfile(path / "config.json"):  # false too for a name that is too long
            raise InputError(f"model.name_or_path: no config.json in {path}; wanted a model folder or a Hub id")
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


def _why(name: str, source: str, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if Path(source).exists():
        return f"model.name_or_path: {name} cannot be loaded from {source} ({reason}); wanted {WHOLE}"
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    tried = f"folder ./{source}, the local Hub cache" + ("" if offline else ", the Hub")
    return (
        f"model.name_or_path: {name} not found; tried {tried}"
        f"{' (HF_HUB_OFFLINE=1)' if offline else ''}; name a local folder, bundled:tiny_base, or a Hub id ({reason})"
    )
