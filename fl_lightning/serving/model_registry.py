"""What a run offers: a model name for every adapter, and which adapters have changed since one looked last."""

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
class Offer:
    """The models of a run; `look` again to see what a new round has brought.

    Attributes:
        run_folder: of the run.
        clients: whether clients' own adapters are offered, beside those of departments and groups.
        only: names to be offered; empty for all.
        created: {model name: when its adapter was written, in seconds since 1970}; the base is among them.
    """

    run_folder: Path
    clients: bool = True
    only: Sequence[str] = ()
    created: dict[str, int] = field(default_factory=dict)
    _stamps: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def look(self, tell: Callable[[Mapping[str, Path]], None] | None = None) -> dict[str, Path]:
        """{model name: folder} of the adapters that are new, or have changed, since the last look.

        One that has gone stays on offer: it is still in memory. After an error nothing counts as looked at. From the
        second look on, one that is not whole is passed over until it is.

        Args:
            tell: is called with them, if there are any, before they are on offer.

        Raises:
            InputError: if the run holds no adapters, or not those asked for.
        """
        found = all_adapters(self.run_folder) if self.clients else shared_adapters(self.run_folder)
        if BASE in found:
            raise InputError(f"{self.run_folder}: a department is called {BASE!r}, as the base model is; rename it")
        for name in (name for name in self.only if name not in found and name not in self.created and name != BASE):
            raise InputError(
                f"--models {name}: no such adapter in {self.run_folder}{nearest(name, found)}; "
                f"wanted some of {', '.join(found)}"
            )
        changed: dict[str, Path] = {}
        stamps: dict[str, tuple[object, ...]] = {}
        created: dict[str, int] = {}
        for name, folder in found.items():
            if self.only and name not in self.only:
                continue
            try:
                stats = [(folder / file).stat() for file in FILES]
            except OSError as error:
                text = f"{folder}: no {Path(error.filename).name} ({error.strerror}); wanted {' and '.join(FILES)}"
                if not self.created:
                    raise InputError(text) from error
                log.warning("%s; model %s stays as it was", text, name)
                continue
            stamp = (folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))
            if self._stamps.get(name) != stamp:
                changed[name] = folder
                stamps[name] = stamp
                created[name] = int(stats[1].st_mtime)
        if not self.only or BASE in self.only:
            created[BASE] = int((self.run_folder / CONFIG).stat().st_mtime)
        if changed and tell is not None:
            tell(changed)
        self._stamps |= stamps
        self.created |= created
        return changed
