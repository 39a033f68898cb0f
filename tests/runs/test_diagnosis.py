import io
import shutil

import pytest
from rich.console import Console

from fl_lightning import openmp
from fl_lightning.config.parsing import parse_config
from fl_lightning.runs import diagnosis
from fl_lightning.training import memory_estimate

QWEN = ["--model.name_or_path", "Qwen/Qwen1.5-1.8B", "--device-map", "cpu"]


def shown(found):
    console = Console(width=100, file=io.StringIO())
    diagnosis.show(found, console)
    return console.file.getvalue()


def test_bundled_base_fits_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: 8 * 2**30)
    found = diagnosis.diagnose(parse_config(["--output", str(tmp_path / "a" / "b"), "--device-map", "cpu"]))
    assert found.problems == []
    assert found.device["precision"] == "fp32"
    assert found.memory["fits"] is True
    assert found.memory["clients_at_once"] == 12
    assert found.disk["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert list(tmp_path.iterdir()) == []
    assert "No problems found." in shown(found)
    assert "CPU threads" in shown(found)
    assert openmp.describe() in " ".join(shown(found).split())


def test_qwen_does_not_fit_into_four_gib_and_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: 4 * 2**30)
    found = diagnosis.diagnose(parse_config([*QWEN, "--training.clients_at_once", "1", "--data.max_length", "64"]))
    assert found.memory["base"] == 1_836_828_672 * 4
    assert found.memory["fits"] is False
    assert "4.0 GiB are free on the cpu; set model.load_in_4bit: true" in found.problems[0]
    assert "does not fit" in shown(found)
    less = diagnosis.diagnose(parse_config([*QWEN, "--load-in-4bit", "--training.clients_at_once", "1"]))
    assert less.memory["base"] < found.memory["base"] / 2


def test_advice_goes_from_the_largest_part_to_smaller_steps():
    base = memory_estimate.BaseSizes(10**6, 0, 10, 8, layers=3, hidden=4, key_value=2, mlp=8, vocabulary=16)

    def advice(*argv):
        config = parse_config(list(argv))
        return diagnosis._advice(
            config, memory_estimate.estimate_memory(config, base, device="cpu", precision="fp32", num_clients=9)
        )

    assert "clients_at_once: 1" in advice("--training.clients_at_once", "2")
    assert "training.batch_size" in advice("--training.clients_at_once", "1")


def test_what_stands_in_the_way_is_said_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    argv = ["--device-map", "cuda", "--dtype", "fp16", "--data", str(tmp_path), "--model.name_or_path", "no/body"]
    found = diagnosis.diagnose(parse_config(argv))
    text = "\n".join(found.problems)
    for words in ("no CUDA device", "expected fp32 or bf16 on cpu, got fp16", "got no/body, whose config.json is not"):
        assert words in text
    assert found.memory is None
    assert "fl-lightning" in shown(found)


def test_data_that_are_not_there_are_named():
    found = diagnosis.diagnose(parse_config(["--data", "/nowhere"]))
    assert any("/nowhere is not a folder" in problem for problem in found.problems)
    assert found.memory["clients_at_once"] == 3


def test_missing_extra_says_how_to_get_it():
    device = {
        "type": "cpu", "name": "x", "count": 1, "precision": "fp32", "asked": "auto", "thread_waits": "short"
    }  # fmt: skip
    found = diagnosis.Diagnosis({"datasets": None}, device, False, {}, None, {"free": 1, "output": "o"}, [])
    text = shown(found)
    assert "missing; pip install 'fl_lightning[data]'" in text
    assert "used for models on the Hub" in text
