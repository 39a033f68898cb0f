"""How a department's step went: weights, distances moved, and the error of averaging factors instead of products."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.aggregation.department import DepartmentStep
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.updates import ReceivedUpdate
from fl_lightning.config import FederationConfig
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.round_report import DepartmentReport, by_client
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.adapter_algebra import concatenate_adapters, product_distance
from fl_lightning.linalg.approximation_error import averaging_error, result_error
from fl_lightning.state import Factor, distance


def describe_step(
    report: DepartmentReport,
    config: FederationConfig,
    department: str,
    step: DepartmentStep,
    *,
    before: FederationState,
    updates: Mapping[str, ReceivedUpdate],
    tasks: Mapping[str, ClientTask],
    shared_factor: Factor,
) -> None:
    """Complete a department's report after its step.

    Args:
        report: of the department; `residual_norms` of its clients are known.
        config: the ``federation`` block.
        department: its name.
        step: the result of `aggregate_department`.
        before: the state of the federation before the step.
        updates: {client_id: update} of the department's clients.
        tasks: {client_id: task} of the round.
        shared_factor: the factor that was averaged.
    """
    report.weights, report.scaled = by_client(step.weights), by_client(step.scaled)
    report.step_size, report.rank_errors = step.step_size, by_client(step.rank_errors)
    report.rejected.update(by_client(step.rejected))
    averaged = {client_id: updates[client_id].shared for client_id in step.weights}
    # Under differential privacy an error computed from the clients' exact updates would leak them.
    measure_error = config.measure_error and bool(averaged) and before.privacy is None
    if config.combiner in KEEP_PRODUCTS:
        adapter = concatenate_adapters([step.state, step.product])
        report.moved = product_distance(adapter, before.adapter(department))
        if measure_error:
            adapters = {client_id: tasks[client_id].adapter(state) for client_id, state in averaged.items()}
            error = result_error(adapters, step.weights, 1.0, adapter, 1.0)
            report.aggregation_error, report.layer_errors = error.overall, error.layers
        return
    report.moved = distance(step.state, before.departments[department])
    report.drift = {c: distance(step.state, updates[f"{department}/{c}"].shared) for c in report.residual_norms}
    if measure_error and shared_factor == "all":
        error = averaging_error(averaged, step.weights, 1.0)
        report.aggregation_error, report.layer_errors = error.overall, error.layers
