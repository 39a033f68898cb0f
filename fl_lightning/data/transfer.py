"""Copies from this machine's memory to a device, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device.

    A GPU copies from pinned memory by itself; a copy from any other memory waits until the GPU has come to it.
    """
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def computed_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items of an iterable, in order; a thread computes the next one while one is used.

    An error in the iterable is raised where its item would have come.

    Example:
        >>> list(computed_ahead(n * n for n in range(4)))
        [0, 1, 4, 9]
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "computed_ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]
