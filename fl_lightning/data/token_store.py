"""Clients' tokens on disk, shared by the runs and processes of a user, so that no record is tokenized twice.

A store belongs to a tokenizer with its chat template and to ``data.max_length``; in it a client is found by the digest
of its files and of what chooses among its records. Tokens are read by everybody who can read the records themselves:
folders and files are for their owner only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_lightning.data.tokenization import Examples
from fl_lightning.storage.block_file import KEY_BYTES, BlockFile

log = logging.getLogger(__name__)

ENCODING = 1
"""Raised whenever the same records give other tokens than before."""


def default_folder() -> Path:
    """The folder of all stores: ``fl_lightning/tokens`` in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fl_lightning" / "tokens"


class TokenStore:
    """Tokenized clients by key.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._blocks = BlockFile(path)

    @classmethod
    def of(cls, folder: Path, tokenizer: Any, max_length: int) -> TokenStore | None:
        """The store of a tokenizer and a length.

        Args:
            folder: of all stores.
            tokenizer: a transformers tokenizer, with the chat template of the run.
            max_length: tokens per record.

        Returns:
            None, and a line in the log, if the folder cannot be used or the tokenizer cannot be told from others.
        """
        if not hasattr(tokenizer, "backend_tokenizer"):
            log.warning("tokens are not kept on disk: %s has no tokenizer.json", type(tokenizer).__name__)
            return None
        try:
            return cls(folder / f"{_digest_of(tokenizer, max_length)}.bin")
        except OSError as error:
            log.warning("tokens are not kept on disk: %s: %s", error.filename or folder, error.strerror)
            return None

    def get(self, key: bytes) -> tuple[list[Examples], dict[str, int]] | None:
        """The record sets of a client, and {key of its records that is not read: number of records}."""
        block = self._blocks.get(key)
        return None if block is None else _unpack(block)

    def put(self, key: bytes, record_sets: Sequence[Examples], unread_keys: Mapping[str, int]) -> None:
        """Keep a client."""
        try:
            self._blocks.put(key, _pack(record_sets, unread_keys))
        except OSError as error:  # the disk is full: the run goes on without
            log.warning("%s: %s; the tokens of a client are not kept", self._blocks.path, error.strerror)


def client_key(contents: Sequence[bytes | None], choice: Mapping[str, Any]) -> bytes:
    """The key of a client.

    Args:
        contents: of its files.
        choice: everything besides them that decides which of its records are in which set; JSON values.
    """
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode())
    for content in contents:
        digest.update(b"\xff" if content is None else hashlib.sha256(content).digest())
    return digest.digest()[:KEY_BYTES]


def _digest_of(tokenizer: Any, max_length: int) -> str:
    template = getattr(tokenizer, "chat_template", None)
    values = {
        "encoding": ENCODING,
        "max_length": max_length,
        "versions": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        "class": type(tokenizer).__name__,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": template,
        "date": date.today().isoformat() if "strftime_now(" in str(template) else None,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _pack(record_sets: Sequence[Examples], unread_keys: Mapping[str, int]) -> bytes:
    keys = json.dumps(dict(unread_keys)).encode()
    lengths = [np.asarray(examples.lengths, "<u4") for examples in record_sets]
    head = np.asarray([len(record_sets), len(keys), *map(len, lengths)], "<u4")
    ids = [examples.flat_ids.numpy().astype("<i4") for examples in record_sets]
    marks = [examples.flat_supervised.numpy().astype("u1") for examples in record_sets]
    return b"".join(part.tobytes() for part in (head, *lengths, *ids, *marks)) + keys


def _unpack(block: bytes) -> tuple[list[Examples], dict[str, int]]:
    num_sets, key_bytes = np.frombuffer(block, "<u4", 2).tolist()
    counts = np.frombuffer(block, "<u4", num_sets, 8).tolist()
    start = 8 + 4 * num_sets
    lengths = []
    for count in counts:
        lengths.append(np.frombuffer(block, "<u4", count, start).tolist())
        start += 4 * count
    totals = [sum(of_set) for of_set in lengths]
    sets = []
    marks_start = start + 4 * sum(totals)
    for of_set, total in zip(lengths, totals, strict=True):
        ids = torch.from_numpy(np.frombuffer(block, "<i4", total, start).astype(np.int32))
        marks = torch.from_numpy(np.frombuffer(block, "u1", total, marks_start).astype(bool))
        sets.append(Examples.of_flat(ids, marks, of_set))
        start, marks_start = start + 4 * total, marks_start + total
    return sets, json.loads(block[len(block) - key_bytes :])
