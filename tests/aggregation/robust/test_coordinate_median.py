import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.coordinate_median import median


def residuals(*vectors):
    return {f"hr/{i}": {"x": torch.tensor(v)} for i, v in enumerate(vectors)}


def median_of(updates):
    return median(updates, {c: 1.0 + i for i, c in enumerate(updates)})


def test_odd_and_even_by_hand():
    assert median_of(residuals([3.0, -1.0], [1.0, 50.0], [2.0, 0.0]))["x"].tolist() == [2.0, 0.0]
    assert median_of(residuals([3.0], [1.0], [2.0], [90.0]))["x"].tolist() == [2.5]
    assert median_of(residuals([3.0], [1.0]))["x"].tolist() == [2.0]


def test_weights_do_not_matter():
    updates = residuals([3.0], [1.0], [2.0])
    assert median(updates, {"hr/0": 1e9, "hr/1": 1.0, "hr/2": 1.0})["x"].item() == 2.0


def test_the_result_is_fp32_of_the_same_shapes_sorted_by_name():
    update = {"z": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.tensor(1.0, dtype=torch.float64)}
    found = median_of({"hr/a": update, "hr/b": update})
    assert [(n, t.dtype, t.shape) for n, t in found.items()] == [
        ("a", torch.float32, torch.Size([])),
        ("z", torch.float32, torch.Size([2, 3])),
    ]


def test_the_result_shares_no_memory_with_the_update():
    updates = residuals([1.0])
    median_of(updates)["x"].fill_(9.0)
    assert updates["hr/0"]["x"].item() == 1.0


floats = st.floats(-(2.0**120), 2.0**120, width=32)


@given(st.lists(st.lists(floats, min_size=4, max_size=4), min_size=1, max_size=9))
def test_it_is_numpys(rows):
    wanted = np.median(np.array(rows, dtype=np.float64), axis=0).astype(np.float32)
    assert median_of(residuals(*rows))["x"].tolist() == wanted.tolist()
