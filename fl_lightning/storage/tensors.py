"""LoRA states in safetensors files.

A file may come from somebody else, so its header (names, types, shapes, sizes) is checked before a tensor is used.
Nothing is unpickled.
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
    """Write a state; for an atomic write, use it inside an `atomic_folder`.

    Raises:
        OSError: if it cannot be written.
    """
    # safetensors refuses views of larger tensors and shared memory, so they are copied.
    tensors = {n: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def read_state(path: Path, like: Mapping[str, torch.Tensor] | None = None) -> LoraState:
    """The tensors of a file, in its order of names.

    Args:
        path: a safetensors file.
        like: names and shapes that it must have; None accepts any.

    Raises:
        InputError: if it is not a regular file, too large, not a complete safetensors file, or unlike `like`.
    """
    if os.path.islink(path) or not os.path.isfile(path):  # also false for a name that is too long
        raise InputError(f"{path}: expected a safetensors file, got {'a link' if os.path.islink(path) else 'no file'}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            headers = {name: file.get_slice(name) for name in names}
            problem = _problem({n: (h.get_dtype(), tuple(h.get_shape())) for n, h in headers.items()}, like)
            if problem is not None:
                raise InputError(f"{path}: {problem}")
            return {name: file.get_tensor(name).clone() for name in names}  # the file may change under a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable ({error}); expected a complete safetensors file") from error


def _problem(header: Mapping[str, tuple[str, tuple[int, ...]]], like: Mapping[str, torch.Tensor] | None) -> str | None:
    for name, (dtype, _) in header.items():
        if not _NAME.fullmatch(name):
            return f"expected tensor names of 1 to 512 letters, digits, '_', '-', '.', '|' or '/', got {name[:80]!r}"
        if dtype not in FLOATS:
            return f"{name}: expected one of the dtypes {', '.join(FLOATS)}, got {dtype}"
    if like is None:
        return None
    if missing := sorted(like.keys() - header.keys()):
        return f"{len(missing)} tensors missing, first {missing[0]}; expected an adapter of this base and lora block"
    if extra := sorted(header.keys() - like.keys()):
        return f"{len(extra)} unknown tensors, first {extra[0]}; expected an adapter of this base and lora block"
    for name, (_, shape) in header.items():
        if shape != tuple(like[name].shape):
            return f"{name}: expected shape {tuple(like[name].shape)}, got {shape}"
    return None
