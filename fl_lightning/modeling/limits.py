"""What a base model can take: how many positions, and which token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.errors import InputError

log = logging.getLogger(__name__)


def max_positions(model_config: Any) -> int | None:
    """The number of positions of a model, from its transformers config; None if it does not state one.

    Example:
        >>> from transformers import GPT2Config
        >>> max_positions(GPT2Config(n_positions=256))
        256
    """
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
    lengths = [getattr(text_config, name, None) for name in names]
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def vocabulary_size(model_config: Any) -> int | None:
    """The number of token ids that a model knows, from its transformers config; None if it does not state one.

    Example:
        >>> from transformers import GPT2Config
        >>> vocabulary_size(GPT2Config(vocab_size=300))
        300
    """
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    size = getattr(text_config, "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def limit_length(max_length: int, model: Any) -> int:
    """`max_length`, or the model's number of positions if that is smaller, which is logged.

    Args:
        max_length: tokens per record, as the config has them.
        model: a transformers model.
    """
    positions = max_positions(model.config)
    if positions is None or max_length <= positions:
        return max_length
    log.warning(
        "data.max_length: %d is more than the %d positions of the base model; records are cut to %d tokens",
        max_length,
        positions,
        positions,
    )
    return positions


def check_token_ids(data: Mapping[str, ClientData], model: Any, tokenizer: Any) -> None:
    """Check that every token of the records has a row in the model's embedding; of lazy clients, when they are read.

    Args:
        data: {client_id: tokenized records}.
        model: a transformers model.
        tokenizer: that made the ids. It may have more tokens than the model, if the records do not use them.

    Raises:
        InputError: naming the first client, record and token.
    """
    rows = model.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values(), default=0) < rows:
        return

    def check(client: ClientData) -> None:
        for split, examples in (("training", client.train), ("held-out", client.eval)):
            for index, example in enumerate(examples):
                highest = int(example.ids.max())
                if highest >= rows:
                    token = tokenizer.convert_ids_to_tokens(highest)
                    raise InputError(
                        f"model.name_or_path: expected token ids below {rows}, the rows of the base model's embedding, "
                        f"got {highest} ({token!r:.40}) in {split} record {index} of {client.client_id}; the tokenizer "
                        f"has {len(tokenizer)} tokens: take the base model's own, or resize and train the embedding"
                    )

    if isinstance(data, LazyClients):
        data.check_each(check)
        return
    for client in data.values():
        check(client)


ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Names in transformers' ``layer_types`` of layers that remember nothing but keys and values."""


def is_recurrent(model: Any) -> bool:
    """Whether a transformers model has layers with a state, such as Mamba's, so that padding before a prompt counts.

    Args:
        model: a transformers or PEFT causal language model.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return bool(getattr(model, "_is_stateful", False)) or not set(kinds) <= ATTENTION_LAYERS
