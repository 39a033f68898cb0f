"""The ids in every message between coordinator and site, and the checks of the replies.

Messages are in the format of `fl_lightning.storage.messages`. Each names its run, its round, and two random numbers,
one of the round and one of the task. A reply must repeat them, so a reply to an earlier request is rejected. The
largest size of a reply is known before it is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from fl_lightning.config.network import Transport
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.linalg.factors import pair_names
from fl_lightning.network.compression import decode as decode_update
from fl_lightning.network.compression import encoded_num_bytes
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import decode

HEADER_BYTES = 1 << 20
"""Limit for the header of a reply: the losses of some ten thousand steps."""
TENSOR_BYTES = 1024
"""Limit for name, shape and offset of a tensor."""
METRIC_NAMES = {field.name for field in fields(Metrics)}
_SIGNATURE = re.compile("([0-9a-f]{128})?")
UPDATE_NAMES = {field.name for field in fields(ClientUpdate)} - {"state"}


class RejectedReply(ValueError):
    """A reply that is not used, with the reason."""


@dataclass(frozen=True)
class RequestId:
    """The ids of a request, which its reply must repeat."""

    run: str
    round: int
    nonce: str
    task: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def max_update_bytes(shared_start: Mapping[str, torch.Tensor], transport: Transport) -> int:
    """Largest size of a correct reply to a task, in bytes.

    Args:
        shared_start: the tensors of the task's start that the site trains and sends.
        transport: fp32, bf16 or int8.

    Example:
        >>> max_update_bytes({"q.lora_A": torch.zeros(2, 3)}, "fp32") - HEADER_BYTES - 2 * TENSOR_BYTES
        24
    """
    return encoded_num_bytes(shared_start, transport) + HEADER_BYTES + TENSOR_BYTES * 2 * len(shared_start)


def parse_reply(
    body: bytes, request_id: RequestId, client_id: str, max_bytes: int
) -> tuple[dict[str, Any], list[LoraState]]:
    """(header, states) of a reply.

    Args:
        body: as received.
        request_id: of the request.
        client_id: the owner of the key with which the reply was sent.
        max_bytes: of the body.

    Raises:
        RejectedReply: if it is too large, incomplete, of another client, or to another request.
    """
    if len(body) > max_bytes:
        raise RejectedReply(f"expected at most {max_bytes:,} bytes, got {len(body):,} bytes")
    try:
        header, states = decode(body)
    except ValueError as error:
        raise RejectedReply(str(error)) from error
    if not isinstance(header, dict):
        raise RejectedReply(f"expected an object as header, got {type(header).__name__}")
    if header.get("client") != client_id:
        sender = str(header.get("client"))[:80]
        raise RejectedReply(f"expected a reply of {client_id}, whose key it came with, got one of {sender!r}")
    received, expected = header.get("request_id"), request_id.to_dict()
    if received != expected:
        different = [n for n in expected if not isinstance(received, Mapping) or received.get(n) != expected[n]]
        raise RejectedReply(f"it replies to another request (its {', '.join(different)} differ): late, or sent again")
    return header, states


def parse_update(
    header: Mapping[str, Any],
    states: list[LoraState],
    task: ClientTask,
    shared_start: Mapping[str, torch.Tensor],
    transport: Transport,
) -> ClientUpdate:
    """The update in a reply to a task; parameters that are not shared are those of the task's start.

    Args:
        header: of the reply.
        states: of the reply.
        task: that it answers.
        shared_start: the tensors of the task's start that the site sends.
        transport: fp32, bf16 or int8.

    Raises:
        RejectedReply: if it cannot be an update for this task.
    """
    values = header.get("update")
    if not isinstance(values, Mapping) or values.keys() != UPDATE_NAMES or len(states) != 1:
        raise RejectedReply(f"expected one update, got {len(states)} states and {str(values)[:80]}")
    if values["client_id"] != task.client_id:
        raise RejectedReply(f"expected an update of {task.client_id}, got one of {str(values['client_id'])[:80]!r}")
    if values["round_num"] != task.round_num:
        raise RejectedReply(f"expected an update of round {task.round_num}, got {str(values['round_num'])[:20]}")
    seconds, losses = values["seconds"], values["losses"]
    if not isinstance(losses, list) or not all(isinstance(loss, (int, float)) for loss in [*losses, seconds]):
        raise RejectedReply("expected numbers as losses and seconds, got something else")
    if not isinstance(values["signature"], str) or not _SIGNATURE.fullmatch(values["signature"]):
        raise RejectedReply(
            f"expected 128 hexadecimal digits or none as signature, got {str(values['signature'])[:20]!r}"
        )
    try:
        if not math.isfinite(seconds):
            raise ValueError(f"expected a finite number of seconds, got {seconds}")
        shared = decode_update(states[0], shared_start, transport) if shared_start else {}
        state = {name: shared.get(name, task.start[name]) for name in sorted(task.start)}
        metrics = None if values["metrics"] is None else Metrics(**values["metrics"])
    except (TypeError, ValueError, OverflowError) as error:
        raise RejectedReply(str(error)[:300]) from error
    return ClientUpdate(**{**values, "state": state, "metrics": metrics, "is_own": task.is_own})


def adapter_rank(state: Mapping[str, torch.Tensor]) -> int:
    """The largest rank of an adapter's layers; 0 without layers."""
    return max((state[names.a].shape[0] for names in pair_names(state).values()), default=0)


def max_adapter_bytes(like: Mapping[str, torch.Tensor], rank: int) -> int:
    """Largest size of a correct reply with an adapter of a rank, in bytes.

    Args:
        like: an adapter of the model, of any rank.
        rank: of each layer.
    """
    values = sum(like[names.b].shape[0] + like[names.a].shape[1] for names in pair_names(like).values())
    return values * rank * 4 + HEADER_BYTES + TENSOR_BYTES * len(like)


def problem_with_adapter(
    state: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor], *, max_rank: int | None = None
) -> str | None:
    """Why a whole adapter that came from elsewhere does not fit the model; None if it does.

    Args:
        state: as received.
        like: an adapter of the model, of any rank.
        max_rank: of a layer; None allows any.

    Example:
        >>> like = {"q.lora_A.weight": torch.zeros(2, 3), "q.lora_B.weight": torch.zeros(5, 2)}
        >>> problem_with_adapter({"q.lora_A.weight": torch.ones(1, 3), "q.lora_B.weight": torch.ones(5, 1)}, like)
        >>> problem_with_adapter({"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": torch.ones(5, 1)}, like)
        'q.lora_A.weight: expected a product of shape (5, 3), got (5, 1) by (1, 4)'
    """
    if state.keys() != like.keys():
        return f"expected the tensors of this model's adapter, got another {sorted(state.keys() ^ like.keys())[0][:80]}"
    for names in pair_names(like).values():
        a, b = state[names.a], state[names.b]
        shapes = (like[names.b].shape[0], like[names.a].shape[1])
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shapes or a.shape[0] != b.shape[1]:
            return f"{names.a}: expected a product of shape {tuple(shapes)}, got {tuple(b.shape)} by {tuple(a.shape)}"
        if max_rank is not None and not 1 <= a.shape[0] <= max_rank:
            return f"{names.a}: expected rank 1 to {max_rank}, got {a.shape[0]}"
        if (a.dtype, b.dtype) != (torch.float32, torch.float32):
            return f"{names.a}: expected float32, got {a.dtype} and {b.dtype}"
        if not bool(a.isfinite().all() and b.isfinite().all()):
            return f"{names.a}: expected finite numbers, got NaN or infinity"
    return None


def parse_metrics(header: Mapping[str, Any], count: int) -> list[Metrics]:
    """The metrics of a number of adapters, in a reply to an evaluation.

    Raises:
        RejectedReply: if they are another number, or not finite numbers.
    """
    if "failed" in header or "refused" in header:
        raise RejectedReply(str(header.get("failed") or header.get("refused"))[:500])
    entries = header.get("metrics")
    if not isinstance(entries, list) or len(entries) != count:
        raise RejectedReply(f"expected the metrics of {count} adapters, got {str(entries)[:80]}")
    for entry in entries:
        complete = isinstance(entry, Mapping) and entry.keys() == METRIC_NAMES
        if not complete or not all(type(v) in (int, float) and abs(v) < 1e15 for v in entry.values()):
            raise RejectedReply(f"expected finite numbers as metrics, got {str(entry)[:200]}")
        is_empty = not any(entry.values())  # a site without held-out records
        if not is_empty and (type(entry["num_tokens"]) is not int or entry["num_tokens"] < 1):
            raise RejectedReply(f"expected metrics over at least 1 token, got {entry['num_tokens']}")
    return [Metrics(**entry) for entry in entries]
