import threading
import time

import pytest
import torch

from fl_lightning.data.transfer import computed_ahead, to_device


class OnGpu:
    """Stands in for a tensor: notes what a copy to a GPU asks for."""

    def __init__(self, is_cuda=False):
        self.is_cuda, self.calls = is_cuda, []

    def pin_memory(self):
        self.calls.append("pin")
        return self

    def to(self, device, non_blocking):
        self.calls.append((str(device), non_blocking))
        return self


@pytest.mark.parametrize(("device", "pins"), [("cuda", True), (torch.device("cuda", 1), True), ("cpu", False)])
def test_only_copies_to_a_gpu_go_through_pinned_memory(device, pins):
    assert to_device(OnGpu(), device).calls == ["pin"] * pins + [(str(device), True)]
    assert to_device(OnGpu(is_cuda=True), device).calls == [(str(device), True)]


def test_a_copy_on_the_cpu_is_the_tensor_itself():
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor


def test_the_next_item_is_computed_while_one_is_used():
    made = []

    def items():
        for n in range(3):
            made.append((n, threading.current_thread().name))
            yield n

    for n in computed_ahead(items()):
        end = time.monotonic() + 10
        while len(made) < min(n + 2, 3):
            assert time.monotonic() < end
            time.sleep(0.001)
        assert len(made) <= n + 2  # and no more, since rows wait on the GPU
    assert all(name.startswith("computed_ahead") for _, name in made)


def test_an_error_comes_where_its_item_would_have_come_and_ends_the_thread():
    def items():
        yield 1
        raise ValueError("row 2")

    ahead = computed_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(ahead)
    assert not [t for t in threading.enumerate() if t.name.startswith("computed_ahead")]


def test_the_thread_ends_with_the_loop():
    for _ in computed_ahead(iter(range(100))):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("computed_ahead")]
