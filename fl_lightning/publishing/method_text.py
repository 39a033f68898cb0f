"""The method of a run in words, from its config: choices and numbers only, no path, no address and no name."""

from __future__ import annotations

from fl_lightning.config import RunConfig
from fl_lightning.publishing.run_facts import AdapterFacts

SHARES = {
    "all": "clients send A and B",
    "a": "clients send A and keep B",
    "b": "clients send B and keep A",
    "freeze_a": "clients train and send B; A is the common start",
    "alternate": "clients send B in odd rounds and A in even ones",
    "none": "clients send nothing (local training only)",
    "central": "no federation: one model trained on all records in one place",
}


def method_of(config: RunConfig, facts: AdapterFacts) -> list[tuple[str, str]]:
    """(part of the method, what was chosen), in the order in which a round goes.

    Args:
        config: of the run.
        facts: of the adapter.
    """
    f, training = config.federation, config.training
    epochs = f"{training.local_epochs} epoch{'s' if training.local_epochs > 1 else ''}"
    fit = f"{epochs} of AdamW a round, learning rate {training.learning_rate:g}, micro-batches of {training.batch_size}"
    if training.proximal_mu:
        fit += f", FedProx μ = {training.proximal_mu:g}"
    rows = [("local training", fit), ("shared", SHARES[f.share])]
    if f.share in ("a", "b") and facts.kind != "client" and f.guard.name != "dp":  # dp makes no mean of what is kept
        rows[-1] = ("shared", f"{SHARES[f.share]}, of which the adapter carries the mean")
    if f.share == "central" or facts.kind == "client":
        return rows
    rows.append(("combined by", _combiner(config)))
    rows.append(("weights of clients", f.weighting.replace("_", " ")))
    rows.append(("guard", "none" if f.guard.name == "none" else f"`{f.guard.name}`"))
    if f.client_fraction < 1 or f.clients_per_round is not None:
        share = f"{f.client_fraction:.0%}" if f.clients_per_round is None else str(f.clients_per_round)
        rows.append(("clients asked in a round", f"{share} of each department's, by a seeded draw"))
    if f.client_clusters.num_clusters > 1:
        rows.append(("clusters of clients", f"{f.client_clusters.num_clusters} by {f.client_clusters.method}"))
    d = f.dept_clusters
    grouping = "off"
    if d.enabled:
        mixed = "A" if d.mix == "a" else "A and B"
        grouping = (
            f"{d.method} on `{d.representation}`, their number by `{d.select}`; {d.mixing_ratio:g} of the cluster's "
            f"mean mixed into {mixed}"
        )
    rows.append(("clusters of departments", grouping))
    return rows


def _combiner(config: RunConfig) -> str:
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
