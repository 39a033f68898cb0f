"""Frames between the processes of one machine: a small JSON header and bytes that nobody on the way looks into.

Neither torch nor anything else that is slow to import is needed here: a new process is started for every message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_HEADER = 1 << 20


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One frame.

    Example:
        >>> unpack(pack({"to": 7}, b"abc"))
        ({'to': 7}, b'abc')
    """
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, "little") + head + body


def unpack(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, body) of a frame.

    Raises:
        ValueError: if it is not a whole frame.
    """
    end = 4 + int.from_bytes(frame[:4], "little")
    if not 4 < end <= min(len(frame), MAX_HEADER):
        raise ValueError(f"frame of {len(frame)} bytes: its header would end at byte {end}; wanted a whole frame")
    try:
        header = json.loads(frame[4:end])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"frame of {len(frame)} bytes: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"frame of {len(frame)} bytes: its header is {type(header).__name__}, wanted an object")
    return header, frame[end:]
