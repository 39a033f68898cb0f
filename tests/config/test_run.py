import dataclasses

import pytest
import yaml

from fl_lightning.config import (
    AuditConfig,
    ClientClustersConfig,
    DataConfig,
    DeptClustersConfig,
    FabricConfig,
    FederationConfig,
    FloraConfig,
    GuardConfig,
    HierarchyConfig,
    LedgerConfig,
    LocalPrivacyConfig,
    LoggingConfig,
    LoraConfig,
    MaskingConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    RetentionConfig,
    RunConfig,
    ServerConfig,
    TrainingConfig,
)
from fl_lightning.errors import InputError

BLOCKS = {
    "": RunConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "federation": FederationConfig,
    "federation.flora": FloraConfig,
    "federation.server": ServerConfig,
    "federation.guard": GuardConfig,
    "federation.privacy": PrivacyConfig,
    "federation.masking": MaskingConfig,
    "federation.client_clusters": ClientClustersConfig,
    "federation.dept_clusters": DeptClustersConfig,
    "federation.hierarchy": HierarchyConfig,
    "fabric": FabricConfig,
    "logging": LoggingConfig,
    "retention": RetentionConfig,
    "audit": AuditConfig,
    "ledger": LedgerConfig,
    "network": NetworkConfig,
    "network.local_privacy": LocalPrivacyConfig,
}
BAD = [
    ("audit.canaries", -1),
    ("audit.kind", "secret"),
    ("audit.temperature", 0.7),
    ("audit.answer_tokens", 0),
    ("audit.guesses", 0.0),
    ("audit.guesses", 1.1),
    ("network.host", " "),
    ("network.port", 0),
    ("network.port", 65536),
    ("network.certificates", ""),
    ("network.join_timeout", 0.0),
    ("network.deadline", -1.0),
    ("network.quorum", 0.0),
    ("network.quorum", 1.1),
    ("network.max_message_mb", 0.0),
    ("network.transport", "fp16"),
    ("network.local_privacy.clip", 0.0),
    ("network.local_privacy.noise_multiplier", -1.0),
    ("network.local_privacy.noise_multiplier", 1.0),
    ("network.local_privacy.delta", 1.0),
    ("seed", -1),
    ("model.name_or_path", ""),
    ("model.name_or_path", "  "),
    ("lora.r", 0),
    ("lora.r", -8),
    ("federation.privacy.clip", 0.0),
    ("federation.privacy.noise_multiplier", 0.0),
    ("federation.privacy.delta", 0.0),
    ("federation.privacy.delta", 1.0),
    ("federation.privacy.target_quantile", 1.0),
    ("federation.privacy.clip_rate", 0.0),
    ("federation.privacy.noise_seed", -1),
    ("federation.privacy.curious_clients", -1),
    ("federation.masking.min_clients", 1),
    ("federation.masking.threshold", 0.4),
    ("federation.masking.threshold", 1.0),
    ("federation.masking.bound", 0.0),
    ("federation.masking.max_weight", 0),
    ("federation.combiner", "mean"),
    ("federation.dept_clusters.smoothing", 1.0),
    ("federation.dept_clusters.patience", 0),
    ("federation.dept_clusters.margin", -0.1),
    ("lora.lora_alpha", 0),
    ("lora.lora_alpha", -1.0),
    ("lora.lora_dropout", -0.1),
    ("lora.lora_dropout", 1.0),
    ("lora.target_modules", []),
    ("lora.target_modules", ["q_proj", " "]),
    ("data.clients_per_dept", 0),
    ("data.max_records", 0),
    ("data.max_length", 7),
    ("data.eval_fraction", 0.0),
    ("data.eval_fraction", 1.0),
    ("training.local_epochs", 0),
    ("training.learning_rate", 0.0),
    ("training.learning_rate", -1e-3),
    ("training.batch_size", 0),
    ("training.accumulate_grad_batches", 0),
    ("training.max_grad_norm", -1.0),
    ("training.weight_decay", -0.1),
    ("training.clients_at_once", 0),
    ("training.clients_at_once", -2),
    ("training.clients_at_once", "many"),
    ("federation.rounds", 0),
    ("federation.rounds", -3),
    ("federation.clients_per_round", 0),
    ("federation.client_fraction", 0.0),
    ("federation.client_fraction", 1.5),
    ("federation.share", "c"),
    ("federation.min_clients", 0),
    ("federation.max_update_norm", 0.0),
    ("federation.weighting", "age"),
    ("federation.server.step", "adam"),
    ("federation.server.schedule", "exponential"),
    ("federation.server.end", -0.1),
    ("federation.server.end", 1.1),
    ("federation.server.schedule_rounds", 0),
    ("federation.server.beta1", 1.0),
    ("federation.server.beta1", -0.1),
    ("federation.server.beta2", 1.0),
    ("federation.server.tau", 0.0),
    ("federation.guard.name", "bulyan"),
    ("federation.guard.max_norm", 0.0),
    ("federation.guard.min_cosine", -1.1),
    ("federation.guard.min_cosine", 1.1),
    ("federation.guard.max_z", 0.0),
    ("federation.guard.f", -1),
    ("federation.guard.fraction", 0.5),
    ("federation.guard.fraction", -0.1),
    ("training.proximal_mu", -1.0),
    ("retention.best", -1),
    ("logging.samples", -1),
    ("federation.flora.momentum", 0.0),
    ("federation.flora.momentum", -0.1),
    ("federation.flora.momentum", 1.01),
    ("federation.client_clusters.num_clusters", 0),
    ("federation.client_clusters.global_mix", -0.01),
    ("federation.client_clusters.global_mix", 1.01),
    ("federation.hierarchy.momentum", 0.0),
    ("federation.hierarchy.momentum", 1.01),
    ("federation.hierarchy.groups", {"trade": []}),
    ("federation.dept_clusters.method", "dbscan"),
    ("federation.dept_clusters.select", "guess"),
    ("federation.dept_clusters.min_clusters", 0),
    ("federation.dept_clusters.max_clusters", 1),
    ("federation.dept_clusters.mixing_ratio", -0.01),
    ("federation.dept_clusters.mixing_ratio", 1.01),
    ("federation.dept_clusters.mix", "b"),
    ("federation.dept_clusters.representation", "cosine"),
    ("fabric.accelerator", "abacus"),
    ("fabric.devices", 0),
    ("fabric.num_nodes", 0),
    ("fabric.parallelism", "layers"),
    ("fabric.strategy", "fsdp"),
    ("fabric.precision", "fp8"),
    ("fabric.memory_limit_mb", 0),
    ("logging.loggers", [{}]),
    ("logging.loggers", [{"class_path": 3}]),
    ("logging.loggers", [{"class_path": "x.Y", "name": "z"}]),
    ("logging.loggers", [{"class_path": "x.Y", "init_args": [1]}]),
    ("retention.client_exports", -1),
    ("retention.checkpoints", -1),
    ("federation.rounds", 1.5),
    ("federation.rounds", True),
    ("federation.rounds", None),
    ("federation.flora.momentum", "fast"),
    ("federation.flora.use_residual", None),
    ("model", None),
]
EDGES = [
    ("seed", 0),
    ("lora.r", 1),
    ("lora.lora_dropout", 0.0),
    ("data.clients_per_dept", 1),
    ("data.max_length", 8),
    ("training.max_grad_norm", 0.0),
    ("training.clients_at_once", 1),
    ("federation.rounds", 1),
    ("fabric.memory_limit_mb", 1),
    ("federation.share", "a"),
    ("federation.flora.momentum", 1.0),
    ("federation.client_clusters.num_clusters", 1),
    ("federation.client_clusters.global_mix", 0.0),
    ("federation.client_clusters.global_mix", 1.0),
    ("federation.dept_clusters.mixing_ratio", 0.0),
    ("federation.dept_clusters.mixing_ratio", 1.0),
    ("federation.dept_clusters.min_clusters", 1),
    ("federation.dept_clusters.max_clusters", 2),
    ("logging.loggers", []),
    ("retention.checkpoints", 0),
]


def build(key, value):
    block, _, name = key.rpartition(".")
    return BLOCKS[block](**{name: value})


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{k}={v}" for k, v in BAD])
def test_a_bad_value_is_refused_by_its_dotted_key(key, value):
    with pytest.raises(InputError) as caught:
        build(key, value)
    message = str(caught.value)
    assert message.startswith(key)
    assert ": expected " in message
    assert ", got " in message
    assert "\n" not in message


@pytest.mark.parametrize(("key", "value"), EDGES, ids=[f"{k}={v}" for k, v in EDGES])
def test_the_edges_of_a_range_are_allowed(key, value):
    assert getattr(build(key, value), key.rpartition(".")[2]) == value


@pytest.mark.parametrize("block", [b for b in BLOCKS if b])
def test_every_block_hangs_where_its_messages_say(block):
    config = RunConfig()
    for part in block.split("."):
        config = getattr(config, part)
    assert type(config) is BLOCKS[block]


def test_max_clusters_below_min_clusters_is_refused():
    with pytest.raises(InputError, match=r"max_clusters: expected at least min_clusters \(4\), got 3"):
        DeptClustersConfig(min_clusters=4, max_clusters=3)


def test_the_message_shows_the_value():
    with pytest.raises(InputError, match="federation.rounds: expected an integer of at least 1, got -7"):
        FederationConfig(rounds=-7)


def test_the_defaults_are_the_documented_ones():
    config = RunConfig().to_dict()
    assert (config["seed"], config["output"]) == (1234, "lightning_logs")
    assert config["model"]["load_in_4bit"] is False
    assert config["model"]["trust_remote_code"] is False
    assert config["lora"] == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
        "profiles": {},
    }
    assert (config["data"]["clients_per_dept"], config["data"]["max_records"]) == (3, 128)
    training = config["training"]
    assert (training["local_epochs"], training["learning_rate"], training["batch_size"]) == (1, 2e-4, 4)
    assert (training["clients_at_once"], training["gradient_checkpointing"]) == ("auto", False)
    schedule = config["federation"].pop("schedule")
    assert (schedule["mode"], schedule["clients"]["speed"]) == ("sync", None)
    assert config["federation"] == {
        "rounds": 10,
        "share": "all",
        "share_layers": None,
        "combiner": "flora",
        "clients_per_round": None,
        "client_fraction": 1.0,
        "min_clients": 1,
        "max_update_norm": 1000.0,
        "measure_error": True,
        "weighting": "examples",
        "server": {
            "step": "sgd",
            "schedule": "constant",
            "end": 0.0,
            "schedule_rounds": 10,
            "beta1": 0.9,
            "beta2": 0.99,
            "tau": 1e-3,
        },
        "guard": {
            "name": "none",
            "max_norm": None,
            "min_cosine": -0.5,
            "max_z": 6.0,
            "f": 1,
            "fraction": 0.2,
        },
        "privacy": {
            "clip": 1.0,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "target_quantile": None,
            "clip_rate": 0.2,
            "noise_seed": None,
            "curious_clients": 1,
        },
        "secure_aggregation": False,
        "masking": {"min_clients": 3, "threshold": 0.667, "bound": 4.0, "max_weight": 1024},
        "flora": {"momentum": 0.1, "use_residual": True},
        "client_clusters": {"num_clusters": 2, "global_mix": 0.2, "method": "kmeans", "representation": "raw"},
        "dept_clusters": {
            "enabled": True,
            "method": "kmeans",
            "select": "elbow",
            "min_clusters": 2,
            "max_clusters": 5,
            "mixing_ratio": 0.3,
            "mix": "a",
            "representation": "delta",
            "smoothing": 0.0,
            "patience": 1,
            "margin": 0.02,
        },
        "hierarchy": {"groups": {}, "momentum": 1.0},
    }
    assert config["fabric"] == {
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "parallelism": "clients",
        "strategy": "auto",
        "precision": "auto",
        "memory_limit_mb": None,
    }
    assert (config["logging"]["cluster_logging"], config["logging"]["save_cluster_metadata"]) == (True, True)


def test_csv_and_tensorboard_are_on_by_default():
    names = [logger["class_path"].rsplit(".", 1)[1] for logger in LoggingConfig().loggers]
    assert names == ["CSVLogger", "TensorBoardLogger"]


def test_two_configs_share_no_lists():
    first = RunConfig()
    first.lora.target_modules.append("k_proj")
    first.logging.loggers.clear()
    assert RunConfig().lora.target_modules == ["q_proj", "v_proj"]
    assert len(RunConfig().logging.loggers) == 2


def test_to_dict_is_plain_yaml_and_complete():
    values = RunConfig().to_dict()
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    assert list(values) == [field.name for field in dataclasses.fields(RunConfig)]


def test_number_and_fraction_of_clients_together_are_refused():
    with pytest.raises(InputError, match="client_fraction.*choose one"):
        FederationConfig(clients_per_round=2, client_fraction=0.5)
