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

from fl_lightning.data.tokenization import Example, Examples
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

    def get(self, key: bytes) -> list[Examples] | None:
        """The record sets of a client; None if it is not there."""
        block = self._blocks.get(key)
        return None if block is None else _unpack(block)

    def put(self, key: bytes, record_sets: Sequence[Sequence[Example]]) -> None:
        """Keep a client."""
        try:
            self._blocks.put(key, _pack(record_sets))
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


def _pack(record_sets: Sequence[Sequence[Example]]) -> bytes:
    """The numbers of records, the length of each, all ids, all marks."""
    records = [example for examples in record_sets for example in examples]
    head = np.asarray([len(record_sets), *map(len, record_sets), *map(len, records)], "<u4")
    ids = [example.ids.numpy().astype("<i4") for example in records]
    marks = [example.supervised.numpy().astype("u1") for example in records]
    return b"".join(part.tobytes() for part in (head, *ids, *marks))


def _unpack(block: bytes) -> list[Examples]:
    (num_sets,) = np.frombuffer(block, "<u4", 1).tolist()
    counts = np.frombuffer(block, "<u4", num_sets, 4).tolist()
    lengths = np.frombuffer(block, "<u4", sum(counts), 4 + 4 * num_sets).tolist()
    start, total = 4 * (1 + num_sets + len(lengths)), sum(lengths)
    ids = torch.from_numpy(np.frombuffer(block, "<i4", total, start).astype(np.int32))
    marks = torch.from_numpy(np.frombuffer(block, "u1", total, start + 4 * total).astype(bool))
    sets = []
    for count in counts:
        own, lengths = lengths[:count], lengths[count:]
        tokens = sum(own)
        sets.append(Examples.of_flat(ids[:tokens], marks[:tokens], own))
        ids, marks = ids[tokens:], marks[tokens:]
    return sets
