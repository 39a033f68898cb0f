"""The adapters between which clients choose: of the run and of runs beside it; on disk for `serve` and `chat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from rich.console import Console

from fl_lightning.clustering.tree import Tree
from fl_lightning.config import RunConfig
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.own_mixture import is_gated
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.personalization.mates import lent_adapters
from fl_lightning.personalization.shared_levels import mean_of_cluster, mean_of_departments
from fl_lightning.runs.build import RunComponents
from fl_lightning.runs.chains import ROOT, train_chain, train_own_chains
from fl_lightning.state import LoraState
from fl_lightning.storage.components import lender, level_of, own_component
from fl_lightning.storage.run_layout import level_adapter
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.own_adapters import own_adapter


def adapters_by_level(
    run_folder: Path,
    config: RunConfig,
    components: RunComponents,
    clients: LocalClients,
    state: FederationState,
    *,
    refit: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, LoraState]]:
    """{client_id: {level: adapter}}, own first; without the cluster of a department that is alone in it.

    Several own adapters are ``own``, ``own 2`` and so on. What mates lend comes last. A single department has no mean
    as its root. Own adapters that were trained during the run are those of `state`; without own adapters there is no
    such level.

    Args:
        run_folder: of the finished run, locked by this process.
        config: of the run.
        components: of this config.
        clients: around the module of the components.
        state: of the run's federation after the last round.
        refit: whether own adapters and the root's are those that were trained on the selection records too.
        console: for progress bars; None is standard error.
    """
    own_states = {own_component(1): state}
    if config.personal.own == "after":
        own_states = train_own_chains(run_folder, config, components, clients, refit=refit, console=console)
    levels = [level for level in config.personal.levels if level != "own" or config.personal.own != "off"]
    departments = {name: state.final_adapter(name) for name in state.departments}
    root = None
    if "root" in levels and config.personal.root == "trained":
        trained = train_chain("root", run_folder, config, components, clients, refit=refit, console=console)
        root = trained.final_adapter(ROOT)
    elif "root" in levels:
        root = mean_of_departments(departments, list(departments))
    assignments = department_clusters(config, state)
    clusters = {name: mean_of_cluster(departments, assignments, name) for name in departments}
    own = {
        client_id: {name: own_adapter(config.personal, own_state, client_id) for name, own_state in own_states.items()}
        for client_id in components.data
    }
    lent = {client_id: states[own_component(1)] for client_id, states in own.items()}
    adapters: dict[str, dict[str, LoraState]] = {}
    for client_id, client in components.data.items():
        available = {
            **own[client_id],
            "department": departments[client.department],
            "cluster": clusters[client.department],
            "root": root,
            "base": state.initial,
        }
        wanted = [name for level in levels for name in available if level_of(name) == level]
        adapters[client_id] = {name: a for name in wanted if (a := available[name]) is not None}
        adapters[client_id] |= lent_adapters(client_id, lent, config.personal.mates)
    return adapters


def department_clusters(config: RunConfig, state: FederationState) -> dict[str, int]:
    """{department: number of its cluster in the last round}, unique over groups of departments."""
    tree = Tree.of(config.federation.hierarchy.groups, state.departments)
    return tree.department_clusters(state.cluster_assignments)


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
        {client_id: {level: folder within the run}}, without base and adapters with gates, which PEFT has no format for;
        a mate's is that of its own level.
    """
    folders: dict[str, dict[str, str]] = {}
    written: set[str] = set()
    for client_id, levels in adapters.items():
        department = client_id.split("/", 1)[0]
        owners = {"own": client_id, "department": department, "cluster": str(clusters.get(department)), "root": ""}
        folders[client_id] = {
            name: _folder(name, owners) for name in levels if name != "base" and not is_gated(levels[name])
        }
        for level, folder in folders[client_id].items():
            if folder not in written:
                export_lora_adapter(model, run_folder / folder, levels[level])
                written.add(folder)
    return folders


def _folder(component: str, owners: Mapping[str, str]) -> str:
    """The folder of a component, with {level: whose it is}.

    Example:
        >>> _folder("own 2", {"own": "hr/client_0"}), _folder("mates it/client_1", {})
        ('personal/levels/own_2/hr/client_0', 'personal/levels/own/it/client_1')
    """
    if mate := lender(component):
        return level_adapter("own", mate)
    return level_adapter(component.replace(" ", "_"), owners[level_of(component)])
