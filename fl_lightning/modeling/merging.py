"""A base model and one of its LoRA adapters made into one model: a folder that plain transformers loads."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import ModelConfig
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
"""What transformers and PEFT write for a model, its tokenizer or an adapter, and a model card."""
TEMPLATES = "additional_chat_templates"
"""The one folder among it."""


@dataclass(frozen=True)
class Merged:
    """A merged model on the disk.

    Attributes:
        folder: where it is.
        dtype: of its weights: fp32, bf16 or fp16.
        size: bytes of its weights.
        rounding: what rounding the adapted weights to `dtype` changed, over what the adapter changed (Frobenius norms).
    """

    folder: Path
    dtype: str
    size: int
    rounding: float


def merge_adapter(
    config: ModelConfig, adapter: Path, folder: Path, *, dtype: str = "auto", copies: int = 1, card: str = ""
) -> Merged:
    """Write base + adapter as one model: safetensors, config, generation config, tokenizer and chat template.

    ``W + s B A`` is worked out in fp32 and rounded once. The folder is written whole or not at all.

    Args:
        config: the ``model`` block; of a base in 4 bits its unquantised weights are taken.
        adapter: a folder in PEFT's format.
        folder: where to; a merged model that stands there is replaced.
        dtype: of the weights written: auto (as the base's own files have them), fp32, bf16 or fp16.
        copies: how many models of this size the disk must have room for.
        card: text of a README.md beside it; none where empty.

    Returns:
        What was written.

    Raises:
        InputError: if base or adapter cannot be used, the folder holds something else, or the disk has no room.

    Example:
        >>> import tempfile
        >>> from fl_lightning import create_lora_model, export_lora_adapter
        >>> base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
        >>> place = Path(tempfile.mkdtemp())
        >>> adapter = export_lora_adapter(create_lora_model(base), place / "hr")
        >>> merged = merge_adapter(ModelConfig(), adapter, place / "out")
        >>> merged.dtype, sorted(path.name for path in merged.folder.glob("*.safetensors"))
        ('bf16', ['model.safetensors'])
    """
    check_replaceable(folder)
    target = stored_dtype(config) if dtype == "auto" else DTYPES[dtype]
    names = {value: name for name, value in DTYPES.items()}
    if target not in names:
        raise InputError(f"--dtype: the base's weights are in {target}; wanted fp32, bf16 or fp16 named")
    if config.load_in_4bit:
        log.info("the base was quantised to 4 bits for training; the adapter is merged into its unquantised weights")
    base, tokenizer = load_base_model(replace(config, load_in_4bit=False), dtype=torch.float32)
    model, rounding = _merged(load_adapter_model(base, adapter), target)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_room(folder, size * copies)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        share_files(temporary)
    return Merged(folder, names[target], size, rounding)


@torch.no_grad()
def _merged(model: Any, dtype: torch.dtype) -> tuple[Any, float]:
    """(base with the adapter in its weights, in `dtype`; what rounding changed over what the adapter changed)."""
    layers = list(lora_layers(model).values())
    change = _norm(layer.get_delta_weight(ADAPTER) for layer in layers)
    bases = [layer.get_base_layer() for layer in layers]
    _untie(model, bases)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"the adapter cannot be merged: {' '.join(str(error).split())[:300]}") from error
    error_ = _norm(base.weight - base.weight.to(dtype) for base in bases)
    merged.to(dtype)
    for name, parameter in merged.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(f"--dtype: {name} has values that {dtype} cannot hold; wanted bf16 or fp32")
    return merged, error_ / change if change else 0.0


def _norm(matrices: Iterable[torch.Tensor]) -> float:
    return float(sum(float(matrix.norm()) ** 2 for matrix in matrices) ** 0.5)


def _untie(model: Any, bases: list[Any]) -> None:
    """Give an adapted layer whose weight is another layer's as well (tied embeddings) a weight of its own."""
    owners = [module for module in model.modules() if "weight" in module._parameters and module not in bases]
    others = {id(module.weight) for module in owners}
    for base in bases:
        if id(base.weight) in others:
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False


def check_room(folder: Path, wanted: int) -> None:
    """Check that the disk of a folder, which need not be there, has so many bytes left.

    Raises:
        InputError: if it has not.
    """
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise InputError(
            f"{place}: {wanted / 2**30:.1f} GiB are to be written and {free / 2**30:.1f} GiB are free; choose another "
            "--to, fewer --models or --dtype bf16"
        )


def check_replaceable(folder: Path) -> None:
    """Check that a folder is not there, or holds nothing but a model or an adapter, which may be replaced.

    Raises:
        InputError: if it holds anything else.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: not a folder; choose another --to")
    for path in folder.iterdir() if folder.exists() else ():
        if (path.is_dir() and path.name != TEMPLATES) or not MODEL_FILES.fullmatch(path.name):
            raise InputError(
                f"{folder}: holds {path.name}, which is no file of a model; choose another --to, or remove it"
            )
