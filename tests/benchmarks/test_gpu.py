"""The script for a machine with a GPU, tried on the CPU with its smallest sections."""

import json

import pytest

from benchmarks import gpu


@pytest.fixture
def run(tmp_path):
    def run(*arguments):
        options = ["--cpu", "--small", "--folder", str(tmp_path), "--model-folder", str(tmp_path / "model")]
        results = gpu.main([*options, *arguments])
        assert json.loads((tmp_path / "gpu.json").read_text()) == results
        return results

    return run


def test_machine_is_described(run):
    info = run("--sections", "info")["info"]
    assert "error" not in info
    assert info["torch"]
    assert all(rate > 0 for rate in info["gemm_tflops"].values())


def test_a_section_that_fails_is_written_down_and_the_next_one_runs(run, monkeypatch):
    def broken(bench):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setitem(gpu.SECTIONS, "profile", broken)
    results = run("--sections", "profile", "info")
    assert results["profile"]["error"] == "RuntimeError: CUDA error: device-side assert triggered"
    assert "gemm_tflops" in results["info"]


def test_nothing_begins_when_the_time_is_over(run):
    assert run("--sections", "info", "--seconds", "0") == {"info": {"left out": "0 seconds were over"}}


@pytest.mark.slow
def test_adapters_are_served_and_compared(run):
    results = run("--sections", "serving", "correctness")
    rows = results["serving"]["rows"]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert results["correctness"]["fp32"]["difference"] < 1e-4
    assert all(row["same_bytes_twice"] for name, row in results["correctness"].items() if name != "section_seconds")
