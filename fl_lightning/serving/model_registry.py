"""The models of a run: a name for every adapter, and which adapters changed since the last refresh."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.run_adapters import BASE, all_adapters, shared_adapters
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG

log = logging.getLogger(__name__)

FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass
class ModelRegistry:
    """The models of a run; `refresh` finds the adapters of a new round.

    Attributes:
        run_folder: the run.
        clients: also serve clients' adapters, beside those of departments and groups.
        only: names to serve; empty for all.
        created: {model name: time its adapter was written, in seconds since 1970}, including the base model.
    """

    run_folder: Path
    clients: bool = True
    only: Sequence[str] = ()
    created: dict[str, int] = field(default_factory=dict)
    _stamps: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def refresh(self, on_change: Callable[[Mapping[str, Path]], None] | None = None) -> dict[str, Path]:
        """{model name: folder} of the adapters that are new or changed since the last refresh.

        A deleted adapter stays available, since it is still in memory. After an error the state is as before. From the
        second refresh on, an incomplete adapter is skipped until it is complete.

        Args:
            on_change: called with the changed adapters, if any, before they become available.

        Raises:
            InputError: the run has no adapters, or not those in `only`.
        """
        adapters = all_adapters(self.run_folder) if self.clients else shared_adapters(self.run_folder)
        if BASE in adapters:
            raise InputError(f"{self.run_folder}: a department is called {BASE!r}, as the base model is; rename it")
        for name in (name for name in self.only if name not in adapters and name not in self.created and name != BASE):
            raise InputError(
                f"--models {name}: no such adapter in {self.run_folder}{nearest(name, adapters)}; "
                f"expected some of {', '.join(adapters)}"
            )
        changed: dict[str, Path] = {}
        stamps: dict[str, tuple[object, ...]] = {}
        created: dict[str, int] = {}
        for name, folder in adapters.items():
            if self.only and name not in self.only:
                continue
            try:
                stats = [(folder / file).stat() for file in FILES]
            except OSError as error:
                text = f"{folder}: no {Path(error.filename).name} ({error.strerror}); expected {' and '.join(FILES)}"
                if not self.created:
                    raise InputError(text) from error
                log.warning("%s; model %s keeps its previous adapter", text, name)
                continue
            stamp = (folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))
            if self._stamps.get(name) != stamp:
                changed[name] = folder
                stamps[name] = stamp
                created[name] = int(stats[1].st_mtime)
        if not self.only or BASE in self.only:
            created[BASE] = int((self.run_folder / CONFIG).stat().st_mtime)
        if changed and on_change is not None:
            on_change(changed)
        self._stamps |= stamps
        self.created |= created
        return changed
