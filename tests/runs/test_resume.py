import shutil

import pytest
from run_files import CLIENTS, adapters, metrics, read, scalars

from fl_lightning import InputError


@pytest.mark.slow
@pytest.mark.parametrize("share", ["all", "a"])
def test_resumed_run_ends_byte_identical_to_a_straight_one(fit, finished, tmp_path, share):
    option = f"--federation.share={share}"
    straight = finished if share == "all" else fit(tmp_path / "straight", "--rounds", "2", option)
    first = fit(tmp_path / "resumed", "--rounds", "1", option)
    resumed = fit(tmp_path / "resumed", "--rounds", "2", option, resume=first)
    assert resumed == first
    assert adapters(resumed) == adapters(straight)
    assert metrics(resumed) == metrics(straight)
    for name in ("federated_eval.json", "client_eval_all_rounds.json", "client_lora_federated.json"):
        assert read(resumed, name) == read(straight, name)
    for tag, values in scalars(straight).items():
        if not tag.startswith(("memory/", "seconds/")):
            assert scalars(resumed)[tag] == values, tag


def test_resume_without_a_checkpoint_is_refused(fit, copied):
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        fit(copied.parent, "--rounds", "3", resume=copied)


def test_resume_with_other_departments_is_refused(fit, copied, tmp_path):
    root = tmp_path / "data"
    for client in CLIENTS:
        folder = root / "hr" / client
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
        (folder / "eval.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (copied / ".lock").unlink()  # it has the number of the process that wrote last
    before = {p: p.read_bytes() for p in copied.glob("*.*")}
    with pytest.raises(InputError, match="expected the departments"):
        fit(tmp_path, "--rounds", "3", "--data", str(root), resume=copied)
    assert {p: p.read_bytes() for p in copied.glob("*.*") if p.name != ".lock"} == before


def test_resume_with_fewer_rounds_than_done_is_refused_and_changes_nothing(fit, copied):
    def contents():
        files = [p for p in copied.rglob("*") if p.is_file() and p.name != ".lock"]
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = contents()
    with pytest.raises(InputError, match=r"federation.rounds: expected at least 2, the rounds that .* got 1"):
        fit(copied.parent, "--rounds", "1", resume=copied)
    assert contents() == before


def test_resume_with_another_rank_is_bad_input(fit, copied):
    # otherwise adapter_config.json says r = 4 beside tensors of rank 8, and PEFT cannot open the adapters
    with pytest.raises(InputError):
        fit(copied.parent, "--rounds", "3", "--lora-r", "4", resume=copied)


@pytest.mark.slow
def test_a_tracking_service_gets_every_row_of_a_resumed_run_once(fit, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed; the test extra has it")
    mlflow = ['--logging.loggers=[{"class_path": "lightning.pytorch.loggers.MLFlowLogger"}]', "--logging.samples=0"]
    folder = fit(tmp_path, "--rounds", "2", *mlflow)
    fit(tmp_path, "--rounds", "3", *mlflow, resume=folder)
    (metric,) = folder.glob("mlruns/*/*/metrics/hr/eval/loss")
    steps = [int(line.split()[2]) for line in metric.read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 3]  # the last row before the end might have been lost
