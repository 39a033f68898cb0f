import pytest
import torch

from fl_lightning.personalization.shared_levels import levels_by_department, mean_of_cluster, mean_of_departments


@pytest.fixture
def adapters():
    """Three departments of ranks 1 and 2."""
    draws = torch.Generator().manual_seed(0)
    return {
        name: {"q.lora_A": torch.randn(r, 3, generator=draws), "q.lora_B": torch.randn(4, r, generator=draws)}
        for name, r in (("hr", 1), ("it", 2), ("law", 1))
    }


def product(state):
    return state["q.lora_B"] @ state["q.lora_A"]


def test_mean_is_that_of_the_products(adapters):
    mean = mean_of_departments(adapters, ["hr", "it"])
    torch.testing.assert_close(product(mean), (product(adapters["hr"]) + product(adapters["it"])) / 2)
    assert mean["q.lora_A"].shape[0] == 3
    assert mean_of_departments(adapters, ["hr"]) is None


def test_a_department_that_is_alone_has_no_cluster(adapters):
    clusters = {"hr": 0, "it": 0, "law": 1}
    torch.testing.assert_close(
        product(mean_of_cluster(adapters, clusters, "it")), (product(adapters["hr"]) + product(adapters["it"])) / 2
    )
    assert mean_of_cluster(adapters, clusters, "law") is None
    assert mean_of_cluster(adapters, {}, "hr") is None


def test_levels_of_a_department_are_its_own_its_clusters_and_the_mean_of_all(adapters):
    levels = levels_by_department(adapters, {"hr": 0, "it": 0, "law": 1})
    assert {name: list(of_department) for name, of_department in levels.items()} == {
        "hr": ["department", "cluster", "root"],
        "it": ["department", "cluster", "root"],
        "law": ["department", "root"],
    }
    assert levels["hr"]["cluster"] is levels["it"]["cluster"]
    torch.testing.assert_close(product(levels["law"]["root"]), sum(product(a) for a in adapters.values()) / 3)
    everybody = levels_by_department(adapters, {"hr": 1, "it": 1, "law": 1})
    assert list(everybody["hr"]) == ["department", "root"]  # one cluster of all would count twice
    assert levels_by_department({"hr": adapters["hr"]}, {}) == {"hr": {"department": adapters["hr"]}}
