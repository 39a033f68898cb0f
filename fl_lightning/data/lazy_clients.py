"""Clients that are read when they are first needed, for federations in which most are never asked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Source = TypeVar("Source")
Item = TypeVar("Item")

LAZY_ABOVE = 1000
"""With more clients than this, records are read, tokenized and checked when a client is first needed."""

MAX_KEPT = 4096
"""Clients whose tokens stay in memory; those used last."""


class LazyClients(Mapping[str, Item], Generic[Source, Item]):
    """{client_id: records} in which a client is read when it is looked up. Iteration reads nothing.

    Args:
        sources: {client_id: where its records are}.
        read: from a client's id and source to its records.

    Example:
        >>> clients = LazyClients({"hr/a": 3, "hr/b": 0}, lambda client_id, source: [client_id] * source)
        >>> list(clients), clients["hr/a"]
        (['hr/a', 'hr/b'], ['hr/a', 'hr/a', 'hr/a'])
    """

    def __init__(self, sources: Mapping[str, Source], read: Callable[[str, Source], Item]) -> None:
        self.sources, self.read = sources, read
        self._kept: OrderedDict[str, Item] = OrderedDict()
        self._checks: list[Callable[[Item], None]] = []
        self._lock = threading.Lock()

    def check_each(self, check: Callable[[Item], None]) -> None:
        """Call a function with every client that is read from now on; it may raise."""
        self._checks.append(check)
        self._kept.clear()

    def __getitem__(self, client_id: str) -> Item:
        """One client.

        Raises:
            InputError: if its records cannot be used, naming file or line.
        """
        with self._lock:
            if client_id in self._kept:
                self._kept.move_to_end(client_id)
                return self._kept[client_id]
            item = self.read(client_id, self.sources[client_id])
            for check in self._checks:
                check(item)
            self._kept[client_id] = item
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return item

    def __contains__(self, client_id: object) -> bool:
        return client_id in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)
