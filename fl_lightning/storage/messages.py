"""Messages between the processes of a run: a JSON header and LoRA states, as plain bytes; nothing is unpickled.

Layout: eight bytes with the header's length (little-endian), the header in UTF-8, a safetensors image of the tensors.
States that share a tensor, as clients of one department do at their start, send it once.
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
    sent: list[torch.Tensor] = []
    layout = []
    for state in states:
        places = {}
        for name, tensor in state.items():
            if id(tensor) not in keys:
                keys[id(tensor)] = str(len(keys))
                sent.append(tensor)  # kept, or a tensor that is read from disk later could get its id
                # A view of a larger tensor, or one that lies in memory twice, is copied: safetensors wants it whole.
                tensors[keys[id(tensor)]] = tensor.detach().clone(memory_format=torch.contiguous_format)
            places[name] = keys[id(tensor)]
        layout.append(places)
    head = json.dumps({"header": header, "states": layout}).encode()
    return len(head).to_bytes(8, "little") + head + save(tensors)


def decode(message: bytes) -> tuple[Any, list[LoraState]]:
    """(header, states) of a message.

    Raises:
        ValueError: if it is not a whole message.
    """
    start = 8 + int.from_bytes(message[:8], "little")
    if not 8 < start <= len(message):
        raise ValueError(f"message of {len(message)} bytes: its header would end at byte {start}; wanted a whole one")
    try:
        head = json.loads(message[8:start])
        tensors = load(message[start:])
        return head["header"], [{name: tensors[key] for name, key in state.items()} for state in head["states"]]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"message of {len(message)} bytes: {error}; wanted a whole one") from error
