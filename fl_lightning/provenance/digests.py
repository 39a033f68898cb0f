"""SHA-256 digests of JSON values, LoRA states, tokenized records and folders, as 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from fl_lightning.storage.manifest import size_and_digest

NO_DIGEST = "0" * 64
"""In the first line of a chain, which has no line before it."""


class TokenizedRecord(Protocol):
    """A record as it is trained on."""

    @property
    def ids(self) -> torch.Tensor:
        """Token ids."""

    @property
    def supervised(self) -> torch.Tensor:
        """Whether the loss is computed on predicting a token."""


def canonical(value: Any) -> bytes:
    """The one way to write a JSON value: sorted keys, no spaces, ASCII, and 1.0 as 1.

    Numbers without a fraction are integers, as in RFC 8785: a config that was read from its file again has 16.0 where
    the program's default was 16.

    Raises:
        ValueError: if a number is NaN or infinite.

    Example:
        >>> canonical({"b": 1.0, "a": [True, None, 0.5]})
        b'{"a":[true,null,0.5],"b":1}'
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    is_integer = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_integer else value


def bytes_digest(data: bytes) -> str:
    """The digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a JSON value's `canonical` form."""
    return bytes_digest(canonical(value))


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The digest of a state: names, dtypes, shapes and bytes of its tensors, in the order of their names.

    Example:
        >>> import torch
        >>> first, second = {"a": torch.zeros(2), "b": torch.ones(1)}, {"b": torch.ones(1), "a": torch.zeros(2)}
        >>> state_digest(first) == state_digest(second), state_digest(first) == state_digest({"a": torch.zeros(2)})
        (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def states_digest(states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, str]:
    """{name: `state_digest`}; a state that has several names is read once."""
    digests: dict[int, str] = {}
    for state in states.values():
        if id(state) not in digests:
            digests[id(state)] = state_digest(state)
    return {name: digests[id(state)] for name, state in states.items()}


def update_digest(
    state: Mapping[str, torch.Tensor], num_examples: int, num_tokens: int, losses: Iterable[float]
) -> str:
    """The digest of a client's update: its tensors, and the numbers from which its weight is computed."""
    numbers = hashlib.sha256(repr((num_examples, num_tokens, list(losses))).encode()).hexdigest()
    return bytes_digest(f"{state_digest(state)} {numbers}".encode())


def records_digest(records: Iterable[TokenizedRecord]) -> str:
    """The digest of records as token ids, in their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(len(record.ids).to_bytes(4, "little"))
        digest.update(record.ids.numpy().data)
        digest.update(record.supervised.numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a file's bytes.

    Raises:
        OSError: if it cannot be read.
    """
    return str(size_and_digest(path)["sha256"])


def folder_digest(folder: Path) -> str:
    """The digest of the names and bytes of all files in a folder.

    Raises:
        OSError: if one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return json_digest({path.relative_to(folder).as_posix(): file_digest(path) for path in files})
