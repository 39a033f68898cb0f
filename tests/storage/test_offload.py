import gc

import pytest
import torch

from fl_lightning.storage.offload import OffloadFolder


@pytest.fixture
def state():
    return {"x.lora_A.weight": torch.randn(2, 3), "x.lora_B.weight": torch.randn(3, 2).T}


def test_a_kept_state_reads_like_a_dictionary(tmp_path, state):
    kept = OffloadFolder(tmp_path).store(state)
    assert list(kept) == list(state)
    assert len(kept) == 2
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    assert {**kept}.keys() == state.keys()
    with pytest.raises(KeyError):
        kept["y"]


def test_tensors_of_one_memory_are_kept_apart(tmp_path):
    whole = torch.arange(6.0)
    kept = OffloadFolder(tmp_path).store({"a": whole[:3], "b": whole[:3]})
    assert torch.equal(kept["a"], kept["b"])


def test_files_go_with_the_objects_and_the_folder_with_the_spill(tmp_path, state):
    offload = OffloadFolder(tmp_path)
    first, second = offload.store(state), offload.store(state)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    tensor = first["x.lora_A.weight"]
    del first
    gc.collect()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(tensor, state["x.lora_A.weight"])
    del second, offload
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_the_systems_is_used(state):
    kept = OffloadFolder().store(state)
    assert torch.equal(kept["x.lora_A.weight"], state["x.lora_A.weight"])
