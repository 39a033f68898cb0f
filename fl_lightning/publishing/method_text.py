"""The method of a run in words, from its config: choices and numbers only, no path, address or name."""

from __future__ import annotations

from fl_lightning.config import RunConfig
from fl_lightning.publishing.run_facts import AdapterFacts

SHARING = {
    "all": "clients send A and B",
    "a": "clients send A and keep B",
    "b": "clients send B and keep A",
    "freeze_a": "clients train and send B; A stays at its common initial value",
    "alternate": "clients send B in odd rounds and A in even ones",
    "none": "clients send nothing (local training only)",
    "central": "no federation: one model trained on all records",
}


def describe_method(config: RunConfig, facts: AdapterFacts) -> list[tuple[str, str]]:
    """(part of the method, choice), in the order of a round.

    Args:
        config: of the run.
        facts: about the adapter.
    """
    f, training = config.federation, config.training
    epochs = f"{training.local_epochs} epoch{'s' if training.local_epochs > 1 else ''}"
    fit = f"{epochs} of AdamW per round, learning rate {training.learning_rate:g}, "
    fit += f"micro-batches of {training.batch_size}"
    if training.proximal_mu:
        fit += f", FedProx μ = {training.proximal_mu:g}"
    rows = [("local training", fit), ("shared", SHARING[f.share])]
    # Under differential privacy the private factors are not averaged.
    if f.share in ("a", "b") and facts.kind != "client" and f.guard.name != "dp":
        rows[-1] = ("shared", f"{SHARING[f.share]}; the adapter has the mean of the private factors")
    if f.share == "central" or (facts.kind == "client" and facts.personal is None):
        return rows
    rows.append(("combined by", _describe_combiner(config)))
    rows.append(("weights of clients", f.weighting.replace("_", " ")))
    rows.append(("guard", "none" if f.guard.name == "none" else f"`{f.guard.name}`"))
    if f.client_fraction < 1 or f.clients_per_round is not None:
        share = f"{f.client_fraction:.0%}" if f.clients_per_round is None else str(f.clients_per_round)
        rows.append(("clients sampled per round", f"{share} of each department's, by a seeded draw"))
    if f.client_clusters.num_clusters > 1:
        rows.append(("clusters of clients", f"{f.client_clusters.num_clusters} by {f.client_clusters.method}"))
    d = f.dept_clusters
    clustering = "off"
    if d.enabled:
        factors = "A" if d.mix == "a" else "A and B"
        mixing = f"{d.mixing_ratio:g} of the cluster's mean mixed into {factors}"
        if d.mixes_predictions:
            mixing = "states are not mixed; predictions of department, cluster and all departments are, in `hr+`"
        clustering = f"{d.method} on `{d.representation}`, their number by `{d.select}`; {mixing}"
    rows.append(("clusters of departments", clustering))
    return rows


def _describe_combiner(config: RunConfig) -> str:
    f = config.federation
    if f.combiner != "flora":
        return f"`{f.combiner}`"
    if f.server.step != "sgd":
        return (
            f"residual averaging, server step `{f.server.step}`, step size {f.flora.momentum:g} ({f.server.schedule})"
        )
    if not f.flora.use_residual:
        return "the weighted mean of the factors"
    return f"residual averaging (FLoRA), step {f.flora.momentum:g} ({f.server.schedule})"
