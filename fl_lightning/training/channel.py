"""Messages between the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fl_lightning.errors import RunError
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import decode, encode


class Channel:
    """Messages between the first process and the others, over a separate gloo group on the CPU."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=365))  # a round may take long

    def send(self, to: int, header: Mapping[str, Any], states: Sequence[Mapping[str, torch.Tensor]] = ()) -> None:
        """Send a message to a rank.

        Raises:
            RunError: if that process is gone.
        """
        message = torch.frombuffer(bytearray(encode(header, states)), dtype=torch.uint8)
        try:
            dist.send(torch.tensor([len(message)]), to, group=self._group)
            dist.send(message, to, group=self._group)
        except RuntimeError as error:
            raise _lost(to, error) from error

    def receive(self, source: int) -> tuple[Any, list[LoraState]]:
        """Wait for the next message of a rank.

        Raises:
            RunError: if that process is gone.
        """
        size = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(size, source, group=self._group)
            message = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(message, source, group=self._group)
        except RuntimeError as error:
            raise _lost(source, error) from error
        return decode(message.numpy().tobytes())


def _lost(rank: int, error: RuntimeError) -> RunError:
    return RunError(f"process {rank} of the run is lost ({' '.join(str(error).split())[:160]})")
