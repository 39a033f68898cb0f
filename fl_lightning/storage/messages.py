"""Messages between the processes of a run: a JSON header and LoRA states, as plain bytes; nothing is unpickled.

Layout: eight bytes with the header's length (little-endian), the header in UTF-8, the tensors as safetensors. A tensor
that several states share, as clients of one department do at their start, is sent once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fl_lightning.state import LoraState


def encode(header: Mapping[str, Any], states: Sequence[Mapping[str, torch.Tensor]] = ()) -> bytes:
    """One message.

    Args:
        header: JSON values.
        states: LoRA states, on the CPU.

    Example:
        >>> message = encode({"do": "fit"}, [{"lora_A": torch.ones(2)}])
        >>> decode(message)
        ({'do': 'fit'}, [{'lora_A': tensor([1., 1.])}])
    """
    tensors: LoraState = {}
    keys: dict[int, str] = {}
    alive: list[torch.Tensor] = []
    layout = []
    for state in states:
        tensor_keys = {}
        for name, tensor in state.items():
            if id(tensor) not in keys:
                keys[id(tensor)] = str(len(keys))
                alive.append(tensor)  # or a tensor that is read from disk later could get the same id
                # safetensors refuses views of larger tensors and shared memory, so they are copied.
                tensors[keys[id(tensor)]] = tensor.detach().clone(memory_format=torch.contiguous_format)
            tensor_keys[name] = keys[id(tensor)]
        layout.append(tensor_keys)
    head = json.dumps({"header": header, "states": layout}).encode()
    return len(head).to_bytes(8, "little") + head + save(tensors)


def decode(message: bytes) -> tuple[Any, list[LoraState]]:
    """(header, states) of a message.

    Raises:
        ValueError: if the message is not complete and valid.
    """
    start = 8 + int.from_bytes(message[:8], "little")
    if not 8 < start <= len(message):
        raise ValueError(
            f"message of {len(message)} bytes: expected a complete one, got a header that would end at byte {start}"
        )
    try:
        head = json.loads(message[8:start])
        tensors = load(message[start:])
        return head["header"], [{name: tensors[key] for name, key in state.items()} for state in head["states"]]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"message of {len(message)} bytes: expected a complete one, got {error}") from error
