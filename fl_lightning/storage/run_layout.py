"""The name of every file and folder in a run, written once. All paths are relative to the run's folder.

config.yaml                                   the run's config
adapters/<department or group>/               adapters after the last or the best round, in PEFT's format
client_exports/<department>/round_R_<client>/ every client's adapter
dept_lora_federated.json, group_…, client_…   indexes: {name: folder of its adapter}
early_stopping.json                           {name: best round of its adapter, by selection records, and its loss}
department_mixtures.json                      weights and losses of departments' mixtures of predictions
mixture_levels/{cluster_<n>,root}/            adapters of these mixtures, beside the departments' own
federated_eval.json                           loss and accuracy of base and adapters
client_eval_all_rounds.json                   the same of clients, by round
cluster_metadata/round_R_<kind>.json          clusters and aggregation of a round
client_runs/<department>/<client>/round_R.csv training loss of every step
samples.json                                  answers of base and adapters
checkpoints/round_R/                          to resume from; round_R_journal/ is for the unfinished round
checkpoints/arrivals/N                        updates of sites that wait in a buffer, between machines
network.json                                  sites of a run between machines
personal_eval.json                            what personalize has chosen for each client, and its losses
personal/adapters/<department>/<client>/      one adapter for each client, with the weights of its mixture
personal/levels/<level>[/<owner>]/            adapters whose predictions are mixed; personal_eval.json has the weights
newcomers.json                                the same for clients and departments that were not in the run
personal/newcomers/<department>/<client>/     one adapter for each of them
personal/{own,root}/version_0/                runs of the clients alone, and of all clients as one department
metrics.csv, events.out.tfevents.*, mlruns/   written by the loggers
loggers.json                                  ids of the run at tracking services
ledger.jsonl                                  chain of rounds: digests of what went in and what came out
certificate/                                  what forget has taken out, with the chain of the run before
updates/round_R/                              clients' updates by what they depend on, for forget
forgetting.json                               of a run that forget makes: from which run, and what is taken out
FORGOTTEN.json                                of a run from which something was taken out: its adapters are used no more
canaries.json                                 0600; canaries and coins of audit.canaries
audit.json                                    bounds on ε and membership tests, by the command audit
ledger_secret                                 0600; from it the clients' salts are derived
.lock                                         locked while a process writes to the run
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

CONFIG = "config.yaml"
LOCK = ".lock"
METRICS = "metrics.csv"
TENSORBOARD = "events.out.tfevents.*"
MLFLOW = "mlruns"
LOGGERS = "loggers.json"
EVALUATION = "federated_eval.json"
CLIENT_EVALUATION = "client_eval_all_rounds.json"
SAMPLES = "samples.json"
NETWORK = "network.json"
LEDGER, LEDGER_SECRET = "ledger.jsonl", "ledger_secret"
CERTIFICATE = "certificate"
"""Folder of a run that was made by `forget`: what it no longer has, and the chain of the run before."""
FORGETTING, FORGOTTEN = "forgetting.json", "FORGOTTEN.json"
PERSONAL_EVALUATION = "personal_eval.json"
NEWCOMERS = "newcomers.json"
CANARIES, AUDIT = "canaries.json", "audit.json"
DEPARTMENT_MIXTURES = "department_mixtures.json"

DEPARTMENT_INDEX = "dept_lora_federated.json"
EARLY_STOPPING = "early_stopping.json"
GROUP_INDEX = "group_lora_federated.json"
CLIENT_INDEX = "client_lora_federated.json"

ADAPTERS = "adapters"
CLIENT_EXPORTS = "client_exports"
CLIENT_RUNS = "client_runs"
CLUSTER_METADATA = "cluster_metadata"
CHECKPOINTS = "checkpoints"
UPDATES = "updates"
PERSONAL = "personal"
RECEIVED = "received"
"""Adapters that a server sent at the end; a run folder that has it is a site's."""
MIXTURE_LEVELS = "mixture_levels"

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter's folder, as PEFT calls them."""
CHECKPOINT_FACTS, CHECKPOINT_TENSORS = "state.json", "state.safetensors"
"""Files of a checkpoint's folder."""
ARRIVALS = "arrivals"
"""Updates of sites that wait in a buffer, in the folder of checkpoints."""
HISTORY = "history.jsonl"
"""Logged rows and callbacks' records of all rounds, in the folder of checkpoints."""

ClusterFile = Literal["department_clusters", "similarity", "hierarchy", "client_clusters", "aggregation", "mixtures"]
"""What a file in ``cluster_metadata`` is about."""


def adapter(name: str) -> str:
    """Folder of a department's or a group's adapter."""
    return f"{ADAPTERS}/{name}"


def client_export(department: str, client: str, round_num: int) -> str:
    """Folder of a client's adapter of a round."""
    return f"{CLIENT_EXPORTS}/{department}/round_{round_num}_{client}"


def parse_client_export(folder: str) -> tuple[int, str] | None:
    """(round, client) of a folder called by `client_export`; None for any other name.

    Example:
        >>> parse_client_export("round_2_client_0"), parse_client_export("round_2")
        ((2, 'client_0'), None)
    """
    match = re.fullmatch(r"round_([0-9]{1,9})_(.+)", folder)
    return (int(match[1]), match[2]) if match else None


def personal_adapter(client_id: str) -> str:
    """Folder of the adapter that `personalize` has made for a client."""
    return f"{PERSONAL}/{ADAPTERS}/{client_id}"


def level_adapter(level: str, owner: str = "") -> str:
    """Folder of a level's adapter, which all clients with this level share.

    Args:
        level: own, department, cluster or root.
        owner: whose it is: a client, a department, or a cluster's number; empty for all clients'.

    Example:
        >>> level_adapter("own", "hr/client_0"), level_adapter("root")
        ('personal/levels/own/hr/client_0', 'personal/levels/root')
    """
    return "/".join(filter(None, (PERSONAL, "levels", level, owner)))


def mixture_level(level: str, department: str, cluster: int | None) -> str:
    """Folder of the adapter of a level in a department's mixture of predictions.

    Args:
        level: department, cluster or root.
        department: whose mixture.
        cluster: of the department; None if departments are not clustered.

    Example:
        >>> [mixture_level(level, "hr", 1) for level in ("department", "cluster", "root")]
        ['adapters/hr', 'mixture_levels/cluster_1', 'mixture_levels/root']
    """
    if level == "department":
        return adapter(department)
    return f"{MIXTURE_LEVELS}/{level}_{cluster}" if level == "cluster" else f"{MIXTURE_LEVELS}/{level}"


def newcomer_adapter(client_id: str) -> str:
    """Folder of the adapter that `personalize` has made for a client that was not in the run."""
    return f"{PERSONAL}/newcomers/{client_id}"


def client_losses(department: str, client: str, round_num: int) -> str:
    """File with the training loss of each step of a client's round."""
    return f"{CLIENT_RUNS}/{department}/{client}/round_{round_num}.csv"


def cluster_file(round_num: int, kind: ClusterFile) -> str:
    """File about a round's clusters or its aggregation."""
    return f"{CLUSTER_METADATA}/round_{round_num}_{kind}.json"


def cluster_files(run_folder: Path, kind: ClusterFile) -> dict[int, Path]:
    """{round: file} of one kind of `cluster_file` in a run, ascending."""
    return _by_round(run_folder / CLUSTER_METADATA, f"_{kind}.json")


def checkpoint(round_num: int) -> str:
    """Folder of a round's checkpoint."""
    return f"{CHECKPOINTS}/round_{round_num}"


def round_folders(folder: Path) -> dict[int, Path]:
    """{round: path} of everything called ``round_R`` in a folder, ascending."""
    return _by_round(folder, "")


def journal(round_num: int) -> str:
    """Folder of a round's journal, relative to the folder of checkpoints."""
    return f"round_{round_num}_journal"


def journals(folder: Path) -> dict[int, Path]:
    """{round: path} of the journals in the folder of checkpoints, ascending."""
    return _by_round(folder, "_journal")


def _by_round(folder: Path, ending: str) -> dict[int, Path]:
    matches = [
        (re.fullmatch(rf"round_([0-9]{{1,9}}){re.escape(ending)}", path.name), path) for path in folder.glob("round_*")
    ]
    return dict(sorted((int(match[1]), path) for match, path in matches if match))
