"""The adapters of all levels on disk, each once, for `serve` and `chat`, which mix their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel

from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.state import LoraState
from fl_lightning.storage.mates import lender
from fl_lightning.storage.run_layout import level_adapter


def export_level_adapters(
    model: PeftModel,
    run_folder: Path,
    adapters: Mapping[str, Mapping[str, LoraState]],
    clusters: Mapping[str, int],
) -> dict[str, dict[str, str]]:
    """Write the adapters that the clients' mixtures are made of.

    Args:
        model: of the run.
        run_folder: of the run.
        adapters: {client_id: {level: adapter}}, and what mates lend; base has none to write.
        clusters: {department: cluster}.

    Returns:
        {client_id: {level: folder within the run}}, without base; a mate's is that of its own level.
    """
    folders: dict[str, dict[str, str]] = {}
    written: set[str] = set()
    for client_id, levels in adapters.items():
        department = client_id.split("/", 1)[0]
        owners = {"own": client_id, "department": department, "cluster": str(clusters.get(department)), "root": ""}
        folders[client_id] = {
            level: level_adapter("own", mate) if (mate := lender(level)) else level_adapter(level, owners[level])
            for level in levels
            if level != "base"
        }
        for level, folder in folders[client_id].items():
            if folder not in written:
                export_lora_adapter(model, run_folder / folder, levels[level])
                written.add(folder)
    return folders
