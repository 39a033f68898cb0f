"""How long the runs beside a run train."""

import pytest
import torch

from fl_lightning.config import (
    ClientClustersConfig,
    ClientProfilesConfig,
    DataConfig,
    FederationConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.runs.chains import rounds_of_chain

LORA = {"q.lora_A.weight": torch.zeros(1)}


@pytest.fixture
def data():
    """Two clients a department; those of hr take three times as long."""
    tokens = {"hr/a": 30, "hr/b": 30, "it/a": 10, "it/b": 10}
    return {c: ClientData(*c.split("/"), train=[range(n)], eval=[]) for c, n in tokens.items()}


def config(early_stopping=False, rounds=20, mode="buffered"):
    speed = ClientProfilesConfig(speed="constant", tokens_per_second=1.0)
    schedule = ScheduleConfig(mode=mode, buffer=2, clients=speed)
    training = TrainingConfig(early_stopping=early_stopping)
    federation = FederationConfig(
        rounds=rounds, schedule=schedule, client_clusters=ClientClustersConfig(num_clusters=1)
    )
    return RunConfig(training=training, federation=federation, data=DataConfig(selection_fraction=0.2))


def test_an_own_adapter_beside_a_buffered_run_has_a_round_for_each_step_of_its_department(data):
    rounds, taken = rounds_of_chain("own", config(), data, LORA)  # 15 steps of it while hr makes 5
    assert (rounds, taken) == (15, {"hr/a": 5, "hr/b": 5, "it/a": 15, "it/b": 15})


def test_a_client_of_a_department_that_never_stepped_has_one_round(data):
    assert rounds_of_chain("own", config(rounds=2), data, LORA) == (2, {"hr/a": 1, "hr/b": 1, "it/a": 2, "it/b": 2})


def test_early_stopping_chooses_among_the_rounds_of_the_longest(data):
    assert rounds_of_chain("own", config(early_stopping=True), data, LORA) == (15, None)


def test_the_root_beside_a_buffered_run_has_the_mean_number_of_steps(data):
    assert rounds_of_chain("root", config(), data, LORA) == (10, None)


@pytest.mark.parametrize("chain", ["own", "root", "department"])
def test_beside_synchronous_rounds_all_have_as_many(data, chain):
    assert rounds_of_chain(chain, config(mode="sync"), data, LORA) == (20, None)


def test_a_refit_of_a_buffered_run_is_the_run_again(data):
    assert rounds_of_chain("department", config(), data, LORA) == (20, None)
