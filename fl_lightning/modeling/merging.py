"""Merges a LoRA adapter into its base model: a folder that transformers loads without PEFT."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import DataConfig, ModelConfig
from fl_lightning.data.chat_template import pin_chat_template
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import load_base_model, stored_dtype
from fl_lightning.modeling.lora import ADAPTER, load_adapter_model, lora_layers
from fl_lightning.storage.files import atomic_folder, share_files

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODEL_FILES = re.compile(
    r"(generation_|tokenizer_|adapter_)?config\.json|(tokenizer|special_tokens_map|added_tokens|vocab)\.json"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|chat_template\.jinja|README\.md"
    r"|(vocab|merges)\.txt|[\w.]+\.model|(configuration|modeling|tokenization)_\w+\.py|additional_chat_templates"
)
"""Files that transformers and PEFT write for a model, a tokenizer or an adapter, and the model card."""
TEMPLATES = "additional_chat_templates"
"""The only folder among them."""


@dataclass(frozen=True)
class MergedModel:
    """A merged model on disk.

    Attributes:
        folder: its folder.
        dtype: of its weights: fp32, bf16 or fp16.
        size: of its weights, in bytes.
        rounding: change by rounding the adapted weights to `dtype`, divided by the change by the adapter (Frobenius
            norms).
    """

    folder: Path
    dtype: str
    size: int
    rounding: float


def merge_adapter(
    config: ModelConfig,
    adapter: Path,
    folder: Path,
    *,
    data: DataConfig | None = None,
    dtype: str = "auto",
    copies: int = 1,
    card: str = "",
) -> MergedModel:
    """Write base model + adapter as one model: safetensors, config, generation config, tokenizer and chat template.

    ``W + s B A`` is computed in fp32 and rounded once. The folder is written atomically. The generation config names
    all tokens that end an answer. The chat template is that of the run, with a clock if it has one.

    Args:
        config: the ``model`` block; for a base model that is quantized in training the weights of its files are used,
            and for one whose files are quantized what they stand for.
        adapter: a folder in PEFT's format.
        folder: where to write; an existing merged model is replaced.
        data: the ``data`` block, with the choices about the chat template; None leaves the template as it is.
        dtype: of the written weights: auto (as in the base model's files), fp32, bf16 or fp16.
        copies: number of models of this size that must fit on the disk.
        card: text of a README.md in the folder; empty writes none.

    Returns:
        A description of the written model.

    Raises:
        InputError: if base model or adapter cannot be loaded, the folder holds other files, or the disk is too full.

    Example:
        >>> import tempfile
        >>> from fl_lightning import create_lora_model, export_lora_adapter
        >>> base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
        >>> folder = Path(tempfile.mkdtemp())
        >>> adapter = export_lora_adapter(create_lora_model(base), folder / "hr")
        >>> merged = merge_adapter(ModelConfig(), adapter, folder / "out")
        >>> merged.dtype, sorted(path.name for path in merged.folder.glob("*.safetensors"))
        ('bf16', ['model.safetensors'])
    """
    check_replaceable(folder)
    target = stored_dtype(config) if dtype == "auto" else DTYPES[dtype]
    names = {value: name for name, value in DTYPES.items()}
    if target not in names:
        raise InputError(f"--dtype: expected fp32, bf16 or fp16, since auto would give the base model's {target}")
    if config.load_in_4bit:
        log.info("the base model was quantized to 4 bits for training; merging into its unquantized weights")
    base, tokenizer = load_base_model(replace(config, load_in_4bit=False), dtype=torch.float32)
    base = _dequantized(base)
    if data is not None:
        pin_chat_template(tokenizer, replace(data, template_date=None))
    if ends := find_end_tokens(tokenizer, base.generation_config):
        base.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    model, rounding = _merged(load_adapter_model(base, adapter), target)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_disk_space(folder, size * copies)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        share_files(temporary)
    return MergedModel(folder, names[target], size, rounding)


def _dequantized(base: Any) -> Any:
    """A base model whose files are quantized, with plain weights; any other as it is."""
    if not getattr(base, "is_quantized", False):
        return base
    method = base.config.quantization_config.quant_method
    method = getattr(method, "value", method)  # a text or an enum
    log.info("the base model's files are quantized (%s); merging into the weights that they stand for", method)
    try:
        return base.dequantize()
    except Exception as error:  # transformers raises NotImplementedError, and the packages of the methods anything
        raise InputError(
            f"the adapter cannot be merged: the base model's files are quantized ({method}), and transformers cannot "
            f"turn them back ({' '.join(str(error).split())[:200]}); use base model and adapter as they are"
        ) from error


@torch.no_grad()
def _merged(model: Any, dtype: torch.dtype) -> tuple[Any, float]:
    """(base model with the adapter in its weights, in `dtype`; change by rounding divided by change by the adapter)."""
    named_layers = lora_layers(model)
    owners: dict[int, str] = {}
    for name, layer in named_layers.items():
        if (owner := owners.setdefault(id(layer.get_base_layer().weight), name)) != name:
            raise InputError(
                f"the adapter cannot be merged: {owner} and {name} share a weight of the base model, and each has an "
                "update; use base model and adapter as they are"
            )
    layers = list(named_layers.values())
    change = _norm(layer.get_delta_weight(ADAPTER) for layer in layers)
    bases = [layer.get_base_layer() for layer in layers]
    _untie(model, bases)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"the adapter cannot be merged: {' '.join(str(error).split())[:300]}") from error
    rounding = _norm(base.weight - base.weight.to(dtype) for base in bases)
    merged.to(dtype)
    for name, parameter in merged.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(f"--dtype: expected bf16 or fp32, since {name} has values that {dtype} cannot hold")
    return merged, rounding / change if change else 0.0


def _norm(matrices: Iterable[torch.Tensor]) -> float:
    return float(sum(float(matrix.norm()) ** 2 for matrix in matrices) ** 0.5)


def _untie(model: Any, bases: list[Any]) -> None:
    """Copy the weight of an adapted layer that shares it with another layer (tied embeddings)."""
    owners = [module for module in model.modules() if "weight" in module._parameters and module not in bases]
    others = {id(module.weight) for module in owners}
    for base in bases:
        if id(base.weight) in others:
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False


def check_disk_space(folder: Path, required: int) -> None:
    """Check that `required` bytes are free on the disk of a folder, which need not exist.

    Raises:
        InputError: if they are not.
    """
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if required > free:
        raise InputError(
            f"{existing}: expected {required / 2**30:.1f} GiB of free space, got {free / 2**30:.1f} GiB; "
            "choose another --to, fewer --models or --dtype bf16"
        )


def check_replaceable(folder: Path) -> None:
    """Check that a folder does not exist, or holds only a model or an adapter, which may be replaced.

    Raises:
        InputError: if it holds anything else.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: not a folder; choose another --to")
    for path in folder.iterdir() if folder.exists() else ():
        if (path.is_dir() and path.name != TEMPLATES) or not MODEL_FILES.fullmatch(path.name):
            raise InputError(
                f"{folder}: holds {path.name}, which does not belong to a model; choose another --to, or remove it"
            )
