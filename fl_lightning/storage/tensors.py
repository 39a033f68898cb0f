"""LoRA states in safetensors files: written by their own names, and looked at before a byte of a tensor is used.

A file may come from somebody else, so what its header says (names, types, shapes, sizes) is checked first; nothing is
unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_lightning.errors import InputError
from fl_lightning.state import LoraState

MAX_BYTES = 16 * 2**30
"""No adapter is larger: rank 1,024 on every layer of a model of 70 billion weights takes half of it in 16 bits."""

FLOATS = ("F64", "F32", "F16", "BF16")
_NAME = re.compile(r"[A-Za-z0-9_.\-|/]{1,512}")


def write_state(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state; for a file that is whole or not there, inside an `atomic_folder`.

    Raises:
        OSError: if the disk does not take it.
    """
    # A view of a larger tensor, or one that lies in memory twice, is copied: safetensors wants it whole.
    tensors = {n: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def read_state(path: Path, like: Mapping[str, torch.Tensor] | None = None) -> LoraState:
    """The tensors of a file, in its order of names.

    Args:
        path: a safetensors file.
        like: names and shapes that it must have; whatever it has where None.

    Raises:
        InputError: if it is no regular file, too large, no whole safetensors file, or not like `like`.
    """
    if os.path.islink(path) or not os.path.isfile(path):  # false too for a name that is too long
        raise InputError(f"{path}: {'a link' if os.path.islink(path) else 'no file there'}; wanted a safetensors file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path}: got {size:,} bytes, wanted at most {MAX_BYTES:,}")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            headers = {name: file.get_slice(name) for name in names}
            problem = _problem({n: (h.get_dtype(), tuple(h.get_shape())) for n, h in headers.items()}, like)
            if problem is not None:
                raise InputError(f"{path}: {problem}")
            return {name: file.get_tensor(name).clone() for name in names}  # the file may change under a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable ({error}); wanted a whole safetensors file") from error


def _problem(header: Mapping[str, tuple[str, tuple[int, ...]]], like: Mapping[str, torch.Tensor] | None) -> str | None:
    for name, (dtype, _) in header.items():
        if not _NAME.fullmatch(name):
            return f"tensor name {name[:80]!r}, wanted 1 to 512 letters, digits, '_', '-', '.', '|' or '/'"
        if dtype not in FLOATS:
            return f"{name}: dtype {dtype}, wanted one of {', '.join(FLOATS)}"
    if like is None:
        return None
    if missing := sorted(like.keys() - header.keys()):
        return f"{len(missing)} tensors missing, first {missing[0]}; wanted an adapter of this base and lora block"
    if extra := sorted(header.keys() - like.keys()):
        return f"{len(extra)} unknown tensors, first {extra[0]}; wanted an adapter of this base and lora block"
    for name, (_, shape) in header.items():
        if shape != tuple(like[name].shape):
            return f"{name}: shape {shape}, wanted {tuple(like[name].shape)}"
    return None
