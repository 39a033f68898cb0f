import pytest
import torch

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.training import memory
from fl_lightning.training.memory import MemoryLimit, release_free_memory, resident_mib

CPU = torch.device("cpu")


def test_no_limit_is_never_reached(monkeypatch):
    monkeypatch.setattr(memory, "resident_mib", lambda: 1e9)
    MemoryLimit(None, CPU).check()


def test_below_the_limit_nothing_happens_and_above_it_is_said_by_how_much(monkeypatch):
    monkeypatch.setattr(memory, "resident_mib", lambda: 1500.4)
    MemoryLimit(1501, CPU).check()
    with pytest.raises(MemoryError, match="expected at most 1,500 MiB of resident memory, got 1,500 MiB"):
        MemoryLimit(1500, CPU).check()


def test_memory_that_was_only_kept_for_later_does_not_count(monkeypatch):
    taken = iter([2000.0, 900.0])
    monkeypatch.setattr(memory, "resident_mib", lambda: next(taken))
    MemoryLimit(1000, CPU).check()


def test_real_memory_counts():
    release_free_memory()
    limit = MemoryLimit(int(resident_mib()) + 100, CPU)
    limit.check()
    block = torch.ones(200 * 2**20 // 4)
    with pytest.raises(MemoryError):
        limit.check()
    del block
    limit.check()


@pytest.fixture
def clients(micro_model, make_examples):
    """Three clients on a micro model with a memory limit, and their tasks."""
    from lightning.fabric import Fabric

    from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
    from fl_lightning.module import LoraClientModule
    from fl_lightning.training.local_clients import LocalClients

    model = create_lora_model(micro_model("qwen"))
    data = {f"hr/c{k}": ClientData("hr", f"c{k}", make_examples(4, k), make_examples(1, 9)) for k in range(3)}
    fabric = Fabric(accelerator="cpu", devices=1)
    local = LocalClients(fabric, LoraClientModule(model), data, TrainingConfig(), 3, memory_limit_mb=10**6)
    start = collect_lora_state(model)
    return local, [ClientTask(client_id, 1, start, 7) for client_id in data]


def test_cohort_above_the_limit_is_fitted_in_halves_with_the_same_result(clients, monkeypatch, log_messages):
    local, tasks = clients
    expected = local.fit_cohort(tasks)
    monkeypatch.setattr(memory, "resident_mib", lambda: 2e6 if local._fitting._cohort.size == 3 else 1.0)
    got = local.fit_cohort(tasks)
    assert log_messages == ["WARNING out of memory with 3 clients at once; continuing with 2"]
    for one, other in zip(got, expected, strict=True):
        assert all(torch.allclose(one.state[n], other.state[n], atol=1e-6) for n in other.state)


def test_one_client_above_the_limit_ends_the_run_with_advice(clients, monkeypatch):
    local, tasks = clients
    monkeypatch.setattr(memory, "resident_mib", lambda: 2e6)
    expected = r"expected at most 1,000,000 MiB .*got 2,000,000 MiB.*lower .*training.gradient_checkpointing: true"
    with pytest.raises(RunError, match=expected) as caught:
        local.fit_cohort(tasks)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_keeps_to_the_limit_by_itself():
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    try:
        MemoryLimit(256, device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(300 * 2**20 // 4, device=device)
        torch.ones(64 * 2**20 // 4, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
