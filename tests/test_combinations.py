import pytest

from fl_lightning import InputError
from fl_lightning.combinations import NONSENSE
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FederationConfig


def config(share, clusters=1, **dept):
    return FederationConfig(
        share=share,
        client_clusters=ClientClustersConfig(num_clusters=clusters),
        dept_clusters=DeptClustersConfig(**{"enabled": bool(dept), **dept}),
    )


BAD = {
    "departments without anything sent": (("none", 1), {"mix": "all"}, "--no-dept-clustering"),
    "clients without anything sent": (("none", 2), {}, "--num-clusters 1"),
    "departments by an A that nobody trains": (("freeze_a", 1), {"mix": "a"}, "--no-dept-clustering"),
    "mixing an A that clients keep": (("b", 1), {"mix": "a"}, "mix: all"),
}


@pytest.mark.parametrize(("arguments", "dept", "fix"), BAD.values(), ids=BAD)
def test_nonsense_is_refused_with_its_reason_and_what_to_choose(arguments, dept, fix):
    with pytest.raises(InputError, match=f"federation.share: got '{arguments[0]}'; .*wanted .*{fix}"):
        config(*arguments, **dept)


def test_every_row_of_the_table_is_tested():
    assert len(BAD) == len(NONSENSE)


@pytest.mark.parametrize(
    ("arguments", "dept"),
    [(("all", 2), {"mix": "a"}), (("a", 2), {"mix": "a"}), (("b", 2), {"mix": "all"}), (("alternate", 2), {"mix": "a"}),
     (("freeze_a", 2), {}), (("none", 1), {})],
)  # fmt: skip
def test_what_makes_sense_is_taken(arguments, dept):
    config(*arguments, **dept)
