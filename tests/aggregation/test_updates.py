import re

import pytest
import torch

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.aggregation.updates import MAX_EXAMPLES, RoundUpdates, problem_with_update
from fl_lightning.federation.protocol import ClientTask, ClientUpdate

A, B = "q.lora_A.weight", "q.lora_B.weight"


def state(a=1.0, b=1.0, rank=2):
    return {A: torch.full((rank, 3), a), B: torch.full((4, rank), b)}


def update(client_id="hr/a", tensors=None, examples=3, tokens=10):
    return ClientUpdate(client_id, 1, state() if tensors is None else tensors, examples, tokens, [0.5])


TASK = ClientTask("hr/a", 1, state(0.0, 0.0), 7)


def test_a_good_update_has_no_problem():
    assert problem_with_update(update(), TASK, 100.0) is None


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (update(tensors=state(rank=3)), r"q\.lora_A\.weight: expected shape \(2, 3\), got \(3, 3\)"),
        (update(tensors={A: torch.ones(2, 3)}), "1 tensors missing"),
        (update(tensors=state(float("nan"))), "not finite"),
        (update(examples=0), "num_examples: expected an integer from 1 to 1,000,000,000, got 0"),
        (update(examples=MAX_EXAMPLES + 1), "got 1000000001"),
        (update(examples=True), "got True"),
        (update(tokens=-1), "tokens"),
        (update(tensors=state(1e6)), r"expected at most 100 .* got 2\.45e\+06"),
    ],
)
def test_each_problem_is_named(bad, problem):
    assert re.search(problem, problem_with_update(bad, TASK, 100.0))


def test_shared_and_private_factors_are_stored_apart_by_client_and_department():
    updates = RoundUpdates()
    for client_id in ("it/a", "hr/b", "it/c"):
        updates.add(update(client_id, examples=5), share_policy("a"))
    assert (updates.departments, len(updates)) == (["it", "hr"], 3)
    assert list(updates.of("it")) == ["it/a", "it/c"]
    assert (list(updates["it/a"].shared), list(updates["it/a"].private)) == ([A], [B])
    assert updates["hr/b"].stats.num_examples == 5
    updates.drop("it")
    assert (updates.departments, list(updates)) == (["hr"], ["hr/b"])


def test_without_a_private_factor_nothing_stays_with_the_client():
    updates = RoundUpdates()
    updates.add(update(), share_policy("all"))
    assert (list(updates["hr/a"].shared), updates["hr/a"].private) == ([A, B], {})


def test_states_are_stored_by_the_function_given():
    stored = []
    updates = RoundUpdates(lambda tensors: stored.append(dict(tensors)) or dict(tensors))
    updates.add(update(), share_policy("a"))
    assert [list(tensors) for tensors in stored] == [[A], [B]]


def test_the_order_of_arrival_does_not_matter_after_sorting():
    updates = RoundUpdates()
    for client_id in ("it/b", "hr/a", "it/a"):
        updates.add(update(client_id), share_policy("a"))
    updates.sort(["hr/a", "hr/b", "it/a", "it/b"])
    assert (updates.departments, list(updates)) == (["hr", "it"], ["hr/a", "it/a", "it/b"])


@pytest.mark.parametrize("departments", [1, 10, 300])
def test_access_to_a_department_reads_no_other_departments_updates(departments):
    updates = RoundUpdates()
    for number in range(departments):
        for client in "abc":
            updates.add(update(f"d{number}/{client}"), share_policy("all"))
    lookups = []

    class Counting(dict):
        def __getitem__(self, key):
            lookups.append(key)
            return super().__getitem__(key)

        def __iter__(self):
            lookups.extend(self.keys())
            return super().__iter__()

    updates._departments = Counting({name: Counting(clients) for name, clients in updates._departments.items()})
    assert len(updates.of("d0")) == 3
    assert list(updates.of("d0")) == ["d0/a", "d0/b", "d0/c"]
    assert updates["d0/a"].stats.num_examples == 3
    assert len(lookups) <= 6
