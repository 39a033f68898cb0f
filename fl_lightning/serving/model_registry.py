"""The models of a run: a name for every adapter, and which adapters changed since the last refresh."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.forgotten import read_forgotten
from fl_lightning.storage.model_names import all_adapters
from fl_lightning.storage.personal_models import MIXTURE, ModelSource, client_mixtures, department_mixtures
from fl_lightning.storage.run_adapters import BASE, shared_adapters
from fl_lightning.storage.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG

log = logging.getLogger(__name__)

FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass
class ModelRegistry:
    """The models of a run; `refresh` finds the adapters of a new round.

    Attributes:
        run_folder: the run.
        clients: also serve clients' adapters and all mixtures, beside the adapters of departments and groups.
        only: names to serve; empty for all.
        created: {model name: time its newest adapter was written, in seconds since 1970}, including the base model.
    """

    run_folder: Path
    clients: bool = True
    only: Sequence[str] = ()
    created: dict[str, int] = field(default_factory=dict)
    _stamps: dict[str, tuple[object, ...]] = field(default_factory=dict)
    _warnings: set[str] = field(default_factory=set)

    def refresh(self, on_change: Callable[[Mapping[str, ModelSource]], None] | None = None) -> dict[str, ModelSource]:
        """{model name: where its adapters are} of the models that are new or changed since the last refresh.

        A deleted adapter stays available, since it is still in memory; but once something was taken out of the run,
        only the base model is. After an error the state is as before. From the second refresh on, an incomplete adapter
        is skipped until it is complete.

        Args:
            on_change: called with the changed adapters, if any, before they become available.

        Raises:
            InputError: the run has no adapters, or not those in `only`.
        """
        if self.created and read_forgotten(self.run_folder) is not None:
            self._withdraw()
            return {}
        sources: dict[str, ModelSource] = {**shared_adapters(self.run_folder)}
        if self.clients:
            sources |= {**all_adapters(self.run_folder), **self._mixtures()}
        if BASE in sources:
            raise InputError(f"{self.run_folder}: a department is called {BASE!r}, as the base model is; rename it")
        for name in (name for name in self.only if name not in sources and name not in self.created and name != BASE):
            raise InputError(
                f"--models {name}: no such adapter in {self.run_folder}{nearest(name, sources)}; "
                f"expected some of {', '.join(sources)}"
            )
        changed: dict[str, ModelSource] = {}
        stamps: dict[str, tuple[object, ...]] = {}
        created: dict[str, int] = {}
        for name, source in sources.items():
            if self.only and name not in self.only:
                continue
            folders = (source,) if isinstance(source, Path) else filter(None, source.folders)
            paths = [folder / file for folder in folders for file in FILES] or [self.run_folder / CONFIG]
            try:
                stats = [path.stat() for path in paths]
            except OSError as error:
                path = Path(error.filename)
                text = f"{path.parent}: no {path.name} ({error.strerror}); expected {' and '.join(FILES)}"
                if not self.created:
                    raise InputError(text) from error
                log.warning("%s; model %s keeps its previous adapter", text, name)
                continue
            stamp = (source, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))
            if self._stamps.get(name) != stamp:
                changed[name] = source
                stamps[name] = stamp
                created[name] = max(int(stat.st_mtime) for stat in stats[1::2] or stats)
        if not self.only or BASE in self.only:
            created[BASE] = int((self.run_folder / CONFIG).stat().st_mtime)
        if changed and on_change is not None:
            on_change(changed)
        self._stamps |= stamps
        self.created |= created
        return changed

    def _withdraw(self) -> None:
        """Offer no adapter any more."""
        if adapters := [name for name in self.created if name != BASE]:
            log.warning("%s: something was taken out of this run: its adapters are served no more", self.run_folder)
        for name in adapters:
            del self.created[name]
        self._stamps.clear()

    def _mixtures(self) -> dict[str, ModelSource]:
        """All mixtures; none, and a warning, if their adapters are not there and no mixture is asked for."""
        try:
            return {**department_mixtures(self.run_folder), **client_mixtures(self.run_folder)}
        except InputError as error:
            if any(name.endswith(MIXTURE) for name in self.only):
                raise
            if str(error) not in self._warnings:
                log.warning("no mixtures of adapters are served: %s", error)
                self._warnings.add(str(error))
            return {}
