"""What travels between coordinator and site, as `fl_lightning.storage.messages`, and the checks of what comes back.

Every message names its run, its round and two random numbers, one of the round and one of the task; an answer must
repeat them, so that an answer to an earlier question is no answer to this one. How large an answer may be is known
before it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.network.site.compression import Transport, num_bytes_of
from fl_lightning.network.site.compression import decode as unpack_update
from fl_lightning.state import Factor, LoraState, select
from fl_lightning.storage.messages import decode

HEADER_BYTES = 1 << 20
"""Room for an answer's header: the losses of some ten thousand steps."""
TENSOR_BYTES = 1024
"""Room for a tensor's name, shape and place."""


class RejectedReply(ValueError):
    """An answer that is not taken, with the reason."""


@dataclass(frozen=True)
class RequestId:
    """What an answer must repeat."""

    run: str
    round: int
    nonce: str
    task: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def max_update_bytes(task: ClientTask, sends: Factor, transport: Transport) -> int:
    """Bytes that an honest answer to a fit has at most.

    Example:
        >>> task = ClientTask("hr/a", 1, {"q.lora_A": torch.zeros(2, 3), "q.lora_B": torch.zeros(3, 2)}, 7)
        >>> max_update_bytes(task, "a", "fp32") - HEADER_BYTES - 2 * TENSOR_BYTES
        24
    """
    start = select(task.start, sends)
    return num_bytes_of(start, transport) + HEADER_BYTES + TENSOR_BYTES * 2 * len(start)


def parse_reply(body: bytes, echo: RequestId, client_id: str, largest: int) -> tuple[dict[str, Any], list[LoraState]]:
    """(header, states) of an answer.

    Args:
        body: as it came.
        echo: of the question.
        client_id: whose key the answer came by.
        largest: bytes that it may have.

    Raises:
        RejectedReply: if it is too large, torn, of another client, or to another question.
    """
    if len(body) > largest:
        raise RejectedReply(f"it has {len(body):,} bytes, wanted at most {largest:,}")
    try:
        header, states = decode(body)
    except ValueError as error:
        raise RejectedReply(str(error)) from error
    if not isinstance(header, dict):
        raise RejectedReply(f"its header is {type(header).__name__}, wanted an object")
    if header.get("client") != client_id:
        raise RejectedReply(
            f"it is in the name of {str(header.get('client'))[:80]!r}, and the key is that of {client_id}"
        )
    if (got := header.get("echo")) != echo.to_dict():
        which = [
            f.name
            for f in fields(RequestId)
            if not isinstance(got, Mapping) or got.get(f.name) != getattr(echo, f.name)
        ]
        raise RejectedReply(f"it answers another question (its {', '.join(which)} differ): late, or sent a second time")
    return header, states


def parse_update(
    header: Mapping[str, Any], states: list[LoraState], task: ClientTask, sends: Factor, transport: Transport
) -> ClientUpdate:
    """The update in an answer; what was not sent of the adapter is as it was in the task's start.

    Raises:
        RejectedReply: if it is none that this task could have.
    """
    values = header.get("update")
    names = {f.name for f in fields(ClientUpdate)} - {"state"}
    if not isinstance(values, Mapping) or values.keys() != names or len(states) != 1:
        raise RejectedReply(f"it holds {len(states)} states and {str(values)[:80]}, wanted one update")
    if values["client_id"] != task.client_id:
        raise RejectedReply(f"its update is of {str(values['client_id'])[:80]!r}, wanted {task.client_id}")
    if values["round_num"] != task.round_num:
        raise RejectedReply(f"its update is of round {str(values['round_num'])[:20]}, wanted {task.round_num}")
    seconds, losses, metrics = values["seconds"], values["losses"], values["metrics"]
    if not isinstance(losses, list) or not all(isinstance(loss, (int, float)) for loss in [*losses, seconds]):
        raise RejectedReply("its losses or seconds are no numbers")
    try:
        if not math.isfinite(seconds):
            raise ValueError(f"its seconds are {seconds}")
        start = select(task.start, sends)
        sent = unpack_update(states[0], start, transport) if start else {}
        state = {name: sent.get(name, task.start[name]) for name in task.start}
        found = None if metrics is None else Metrics(**metrics)
    except (TypeError, ValueError, OverflowError) as error:
        raise RejectedReply(str(error)[:300]) from error
    return ClientUpdate(**{**values, "state": _plain(state), "metrics": found})


def _plain(state: Mapping[str, torch.Tensor]) -> LoraState:
    return {name: state[name] for name in sorted(state)}
