"""Logs clusters, similarities and aggregation statistics, and writes them to cluster_metadata/."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.clustering import Clustering, clusters_from_labels
from fl_lightning.clustering.tree import ROOT
from fl_lightning.storage.run_layout import cluster_file

if TYPE_CHECKING:
    from fl_lightning.config import DeptClustersConfig
    from fl_lightning.federation.round_report import RoundReport
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)


class ClusterMonitor(FederatedCallback):
    """Reports after every round: clusters, similarities of departments, and how clients were aggregated.

    Args:
        log_metrics: send metrics to the loggers and the clusters to the log.
        save_metadata: write ``cluster_metadata/round_R_*.json``.
        truth: {department: true cluster}, where it is known; gives ``round/ari``, the adjusted Rand index.
    """

    def __init__(
        self, *, log_metrics: bool = True, save_metadata: bool = True, truth: Mapping[str, int] | None = None
    ) -> None:
        self.log_metrics = log_metrics
        self.save_metadata = save_metadata
        self.truth = truth

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log and write."""
        if self.log_metrics:
            self._log(trainer)
        if self.save_metadata and trainer.run_folder is not None:
            self._save(trainer, trainer.run_folder)

    def _log(self, trainer: FederatedTrainer) -> None:
        report = trainer.report
        metrics: dict[str, float] = {"round/left_out": sum(len(d.rejected) for d in report.departments.values())}
        metrics["round/tokens"] = report.num_tokens
        if report.virtual_hours is not None:
            metrics["round/virtual_hours"] = report.virtual_hours
        if report.is_planned:
            metrics["round/dropped"] = len(report.dropped)
            ages = report.staleness.values()
            metrics["round/stale"] = sum(age > 0 for age in ages)
            metrics["round/staleness"] = sum(ages) / max(len(ages), 1)
        for level in (f"{who}/{way}" for who in ("client", "department", "group") for way in ("up", "down")):
            if level in report.bytes_sent:
                metrics[f"round/bytes/{level}"] = report.bytes_sent[level]
        for name, department in report.departments.items():
            metrics[f"{name}/moved"] = department.moved
            metrics[f"{name}/step_size"] = department.step_size
            if department.aggregation_error is not None:
                metrics[f"{name}/aggregation_error"] = department.aggregation_error
            if department.epsilon is not None and department.clip is not None:
                metrics[f"{name}/epsilon"], metrics[f"{name}/clip"] = department.epsilon, department.clip
            if department.quantization_error is not None and department.summed is not None:
                metrics[f"{name}/summed"] = department.summed
                metrics[f"{name}/quantization_error"] = department.quantization_error
            for client, norm in department.residual_norms.items():
                metrics[f"{name}/{client}/residual_norm"] = norm
                if client in department.drift:
                    metrics[f"{name}/{client}/drift"] = department.drift[client]
            for client, error in department.rank_errors.items():
                metrics[f"{name}/{client}/rank_error"] = error
        if report.clustering is not None:
            metrics["round/n_clusters"] = report.clustering.n_clusters
            metrics.update({f"round/{name}": value for name, value in self._quality(report.clustering).items()})
        for group, clustering in report.clusterings.items():
            metrics.update({f"{name}/cluster": cluster for name, cluster in clustering.assignments.items()})
            if group != ROOT:
                metrics[f"{group}/n_clusters"] = clustering.n_clusters
            clusters = " | ".join(", ".join(names) for names in clustering.clusters.values())
            log.info("round %d: clusters%s %s", report.round_num, f" in {group}" if group != ROOT else "", clusters)
        trainer.log(metrics)

    def _quality(self, clustering: Clustering) -> dict[str, float]:
        known = [name for name in clustering.assignments if self.truth is not None and name in self.truth]
        if self.truth is None or len(known) < 2:
            return clustering.quality
        from sklearn.metrics import adjusted_rand_score

        labels = [[side[name] for name in known] for side in (self.truth, clustering.assignments)]
        return {**clustering.quality, "ari": float(adjusted_rand_score(*labels))}

    def _save(self, trainer: FederatedTrainer, run_folder: Path) -> None:
        report, round_num = trainer.report, trainer.round_num
        clusters = trainer.federation_config.dept_clusters
        if report.clustering is not None:
            departments = {"round": round_num, **_clusters_json(report.clustering, clusters)}
            trainer.writer.json(run_folder / cluster_file(round_num, "department_clusters"), departments)
            similarity = {"round": round_num, **_similarity_json(report.clustering, clusters)}
            trainer.writer.json(run_folder / cluster_file(round_num, "similarity"), similarity)
        inner = {
            group: {**_clusters_json(clustering, clusters), "similarity": _similarity_json(clustering, clusters)}
            for group, clustering in report.clusterings.items()
            if group != ROOT
        }
        if inner:
            trainer.writer.json(
                run_folder / cluster_file(round_num, "hierarchy"), {"round": round_num, "groups": inner}
            )
        client_clusters = {
            name: {
                "clusters": {str(c): who for c, who in clusters_from_labels(d.client_clusters).items()},
                "assignments": d.client_clusters,
            }
            for name, d in report.departments.items()
        }
        trainer.writer.json(
            run_folder / cluster_file(round_num, "client_clusters"),
            {"round": round_num, "departments": client_clusters},
        )
        aggregation = {
            "round": round_num,
            "departments": {
                name: {
                    "weights": d.weights,
                    "residual_norms": d.residual_norms,
                    "drift": d.drift,
                    "moved": d.moved,
                    "left_out": d.rejected,
                    "scaled": d.scaled,
                    "step_size": d.step_size,
                    "aggregation_error": d.aggregation_error,
                    "layer_errors": d.layer_errors,
                    "rank_errors": d.rank_errors,
                    "epsilon": d.epsilon,
                    "clip": d.clip,
                    "summed": d.summed,
                    "quantization_error": d.quantization_error,
                }
                for name, d in report.departments.items()
            },
            "bytes": report.bytes_sent,
            **(_plan_json(report) if report.is_planned else {}),
        }
        trainer.writer.json(run_folder / cluster_file(round_num, "aggregation"), aggregation)


def _plan_json(report: RoundReport) -> dict[str, Any]:
    hours = {} if report.virtual_hours is None else {"virtual_hours": report.virtual_hours}
    return {**hours, "staleness": report.staleness, "dropped": report.dropped}


def _similarity_json(clustering: Clustering, config: DeptClustersConfig) -> dict[str, Any]:
    return {
        "departments": clustering.departments,
        "cosine": None if clustering.cosine is None else clustering.cosine.tolist(),
        "representation": config.representation,
    }


def _clusters_json(clustering: Clustering, config: DeptClustersConfig) -> dict[str, Any]:
    return {
        "n_clusters": clustering.n_clusters,
        "clusters": {str(c): names for c, names in clustering.clusters.items()},
        "assignments": clustering.assignments,
        "inertias": {str(k): inertia for k, inertia in clustering.inertias.items()},
        "method": config.method,
        "select": config.select,
        **({"scores": {str(k): score for k, score in clustering.scores.items()}} if clustering.scores else {}),
        **({"p_values": {str(k): p for k, p in clustering.p_values.items()}} if clustering.p_values else {}),
        **({"quality": clustering.quality} if clustering.quality else {}),
    }
