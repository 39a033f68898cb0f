from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.training import step_rows
from fl_lightning.training.step_rows import RowMaker

CPU = torch.device("cpu")


@pytest.fixture
def cohort(micro_model, random_state):
    model = create_lora_model(micro_model("qwen"), r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    cohort = LoraCohort(model)
    cohort.load([random_state(model, seed) for seed in range(2)], CPU)
    return cohort


@pytest.fixture
def plans(make_examples):
    """Two clients: three steps of two micro-batches, and one step of one."""
    first = [[make_examples(2, seed=step), make_examples(1, seed=9 + step)] for step in range(3)]
    return [first, [[make_examples(3, seed=5)]]]


def make(cohort, **options):
    return RowMaker(cohort, [dropout_stream(seed) for seed in range(2)], CPU, lambda batch: [batch], **options)


def test_a_step_has_a_row_for_each_micro_batch(cohort, plans):
    first, second, _ = make(cohort).steps(plans)
    assert [row.batch.client_tokens for row in first.rows] == [
        (sum(map(len, plans[0][0][0])), sum(map(len, plans[1][0][0]))),
        (sum(map(len, plans[0][0][1])), 0),
    ]
    targets = [sum(e.num_targets for batch in plan[0] for e in batch) for plan in plans]
    assert first.num_targets.tolist() == targets
    assert second.num_targets.tolist() == [sum(e.num_targets for batch in plans[0][1] for e in batch), 1]
    assert first.num_tokens == sum(sum(row.batch.client_tokens) for row in first.rows)
    assert {row.weight for row in first.rows} == {1.0}


def test_rows_that_a_thread_makes_ahead_are_the_same(cohort, plans):
    plain = list(make(cohort).steps(plans))
    ahead = list(step_rows.computed_ahead(make(cohort).steps(plans)))
    for one, other in zip(plain, ahead, strict=True):
        for a, b in zip(one.rows, other.rows, strict=True):
            assert torch.equal(a.batch.input_ids, b.batch.input_ids)
            assert np.array_equal(a.places.token_keys, b.places.token_keys)


def test_an_empty_share_of_a_sharded_base_runs_along_without_weight(cohort, plans):
    """Only in the micro-batches in which it is empty."""
    empty_second = SimpleNamespace(
        shards_base_model=True, local_batch=lambda clients: [batch if len(batch) > 1 else [] for batch in clients]
    )
    step = make(cohort, shard=empty_second).step([plan[0] for plan in plans])
    assert [row.weight for row in step.rows] == [1.0, 0.0]
    alone = SimpleNamespace(shards_base_model=False, local_batch=empty_second.local_batch)
    assert [row.weight for row in make(cohort, shard=alone).step([plan[0] for plan in plans]).rows] == [1.0]
