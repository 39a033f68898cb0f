import pytest
import torch

from fl_lightning import MemoryMonitor
from fl_lightning.training.memory import peak_resident_mib, resident_mib


def test_resident_memory_grows_by_what_is_allocated():
    before = resident_mib()
    block = torch.ones(64 * 2**20 // 4)
    assert resident_mib() - before == pytest.approx(64, abs=16)
    assert float(block[-1]) == 1.0


def test_peak_is_at_least_the_current_memory():
    assert peak_resident_mib() >= resident_mib() - 1
    assert peak_resident_mib() > 50  # torch alone takes more


def test_every_round_logs_memory_in_mib(play, state):
    trainer = play([{"hr/c0": (state((2, 0)), 1)}] * 2, callbacks=[MemoryMonitor()])
    for round_num in (1, 2):
        row = dict(trainer.history)[round_num]
        assert set(row) == {"memory/rss_mib", "memory/peak_rss_mib"}
        assert 50 < row["memory/rss_mib"] <= row["memory/peak_rss_mib"] + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_memory_is_logged_in_mib():
    from types import SimpleNamespace

    logged = {}
    trainer = SimpleNamespace(fabric=SimpleNamespace(device=torch.device("cuda", 0)), log=logged.update)
    block = torch.ones(64 * 2**20 // 4, device="cuda")
    MemoryMonitor().on_round_end(trainer=trainer)
    assert logged["memory/gpu_mib"] >= 64
    assert logged["memory/peak_gpu_mib"] >= logged["memory/gpu_mib"]
    del block
