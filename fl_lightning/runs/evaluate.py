"""Evaluate the adapters of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_lightning import launch
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.evaluation.department_mixtures import evaluate_mixtures
from fl_lightning.evaluation.departments import evaluate_run
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.runs.build import build_components, build_tree, load_run_config, make_local_clients
from fl_lightning.runs.canaries import without_canaries
from fl_lightning.storage.run_folder import locked
from fl_lightning.training.worker_processes import WorkerProcesses


def evaluate(run_folder: Path) -> dict[str, Any] | None:
    """Write the JSON files with a finished run's evaluation again from its adapters.

    Returns:
        The contents of ``federated_eval.json``, and as ``mixtures`` those of ``department_mixtures.json`` where there
        is one; None on all processes but the first.

    Raises:
        InputError: if the run has no config or no adapters.
    """
    config = without_canaries(load_run_config(run_folder))
    if not launch.is_first():
        components = build_components(config)
        clients = make_local_clients(components, config)
        if isinstance(clients, WorkerProcesses):
            clients.serve()
        return None
    with locked(run_folder):
        components = build_components(config)
        clients = make_local_clients(components, config)
        initial = collect_lora_state(components.module.model)
        result = evaluate_run(
            run_folder,
            components.data,
            clients,
            initial,
            tree=build_tree(config, components.data),
            any_rank=config.federation.combiner in KEEP_PRODUCTS,
            panel=EvaluationPanel.draw(components.data, config.evaluation, config.seed),
        )
        if (mixtures := evaluate_mixtures(run_folder, components.data, clients, initial)) is not None:
            result = {**result, "mixtures": mixtures}
        if isinstance(clients, WorkerProcesses):
            clients.stop()
        return result
