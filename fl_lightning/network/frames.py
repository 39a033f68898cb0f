"""Frames between the processes of one machine: a small JSON header, and bytes that are passed on unread.

Nothing here is slow to import, because Flower starts a new process for every message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_HEADER = 1 << 20


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Header and body as one frame.

    Example:
        >>> unpack(pack({"to": 7}, b"abc"))
        ({'to': 7}, b'abc')
    """
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, "little") + head + body


def unpack(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, body) of a frame.

    Raises:
        ValueError: if it is not a complete frame.
    """
    end = 4 + int.from_bytes(frame[:4], "little")
    if not 4 < end <= min(len(frame), MAX_HEADER):
        raise ValueError(f"expected a complete frame, got {len(frame)} bytes whose header would end at byte {end}")
    try:
        header = json.loads(frame[4:end])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON as header of a frame, got {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"expected an object as header of a frame, got {type(header).__name__}")
    return header, frame[end:]
