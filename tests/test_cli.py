import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from forked import Forked

from fl_lightning.cli import main
from fl_lightning.federation.checkpoint import checkpoints

GOOD = '{"prompt": "a", "completion": "b"}\n'
SMALL = ["--clients-per-dept", "1", "--max-records", "2", "--device-map", "cpu", "--logging.samples", "0"]


@pytest.fixture(autouse=True)
def _put_process_back():
    """The command line sets up logging, warnings and a signal handler for a process of its own."""
    names = ("fl_lightning", "lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    # The command line turns bars off by an environment variable, too late for a process that has transformers loaded.
    transformers.utils.logging.disable_progress_bar()
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


def command(*arguments):
    return [sys.executable, "-m", "fl_lightning", *map(str, arguments)]


def write_client(root, train):
    folder = root / "hr" / "client_0"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(train)
    (folder / "eval.jsonl").write_text(GOOD)
    return folder / "train.jsonl"


# Bad input; tests/test_bad_input.py has the table


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_missing_gpu_is_bad_input(tmp_path, capfd):
    assert main(["fit", "--device-map", "cuda", "--output", str(tmp_path)]) == 2
    assert "fabric.accelerator: expected auto or cpu" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_bad_data_in_a_process_of_its_own_is_one_line_too(tmp_path):
    train = write_client(tmp_path / "data", GOOD + '{"prompt": "a", "completion"\n')
    argv = ("fit", "--data", tmp_path / "data", "--output", tmp_path / "out", *SMALL)
    code, output = Forked(argv, tmp_path).finish()
    assert code == 2
    assert len(output.splitlines()) == 1, output
    assert f"{train}:2" in output


# Good input


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  fit ", out, re.MULTILINE)
    assert re.search(r"^  evaluate ", out, re.MULTILINE)


def test_fit_help_lists_keys_and_every_shortcut_of_the_contract(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code in (0, None)
    out = capsys.readouterr().out
    flags = """--rounds --clients-per-dept --local-epochs --learning-rate --max-records --batch-size --lora-r
    --lora-alpha --lora-dropout --target-modules --num-clusters --global-mix --dept-clustering --no-dept-clustering
    --load-in-4bit --device-map --dtype --data --output --seed --resume --config --print_config --federation.rounds"""
    for flag in flags.split():
        assert re.search(rf"{flag}\b", out), flag


def test_fit_help_shows_one_shortcut_a_line(capsys):
    from fl_lightning.config.shortcuts import SHORTCUTS

    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for flag, key in SHORTCUTS.items():
        assert [flag, key] in [line.split() for line in lines], flag


def test_evaluate_help_says_what_a_run_is(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0
    assert "--run RUN" in capsys.readouterr().out


def test_version_is_a_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_print_config_gives_yaml_that_reads_back(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--rounds", "3", "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["federation"]["rounds"] == 3
    (tmp_path / "printed.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


@pytest.mark.slow
def test_flags_of_the_contract_reach_the_run(micro_base, tmp_path, capfd):
    flags = "--rounds 1 --clients-per-dept 2 --learning-rate 0.0005 --local-epochs 2 --global-mix 0.3 --max-records 4"
    more = "--batch-size 2 --lora-r 4 --lora-alpha 8 --lora-dropout 0 --target-modules q_proj k_proj --num-clusters 1"
    last = f"--no-dept-clustering --device-map cpu --dtype fp32 --data bundled:departments --output {tmp_path} --seed 7"
    assert main(["fit", *f"{flags} {more} {last}".split(), "--model.name_or_path", micro_base]) == 0
    config = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    assert config["federation"]["rounds"] == 1
    assert {"num_clusters": 1, "global_mix": 0.3}.items() <= config["federation"]["client_clusters"].items()
    assert config["federation"]["dept_clusters"]["enabled"] is False
    assert config["data"]["clients_per_dept"] == 2
    assert config["data"]["max_records"] == 4
    assert config["training"]["learning_rate"] == 0.0005
    assert config["training"]["local_epochs"] == 2
    assert config["training"]["batch_size"] == 2
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0, "target_modules": ["q_proj", "k_proj"]}
    assert lora.items() <= config["lora"].items()
    assert config["fabric"]["accelerator"] == "cpu"
    assert config["fabric"]["precision"] == "fp32"
    assert config["seed"] == 7
    steps = (tmp_path / "version_0/client_runs/hr/client_1/round_1.csv").read_text().splitlines()
    assert len(steps) == 1 + 2 * 4 // 2
    adapter = json.loads((tmp_path / "version_0/adapters/hr/adapter_config.json").read_text())
    assert (adapter["r"], sorted(adapter["target_modules"])) == (4, ["k_proj", "q_proj"])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_fit_then_resume_then_evaluate(micro_base, tmp_path, capfd):
    output = ["--output", str(tmp_path)]
    assert main(["fit", "--rounds", "1", *SMALL, "--model.name_or_path", micro_base, *output]) == 0
    folder = tmp_path / "version_0"
    assert main(["fit", "--resume", "last", "--rounds", "2", *output]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["version_0"]
    assert list(checkpoints(folder)) == [1, 2]
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["max_records"] == 2
    wanted = json.loads((folder / "federated_eval.json").read_text())
    capfd.readouterr()
    assert main(["evaluate", "--run", "last", *output]) == 0
    out = capfd.readouterr().out
    assert f"{wanted['departments']['hr']['final']['loss']:.3f}" in out
    assert main(["evaluate", f"--run={folder}"]) == 0


def test_run_that_cannot_go_on_is_exit_code_1(monkeypatch, capfd, tmp_path):
    from fl_lightning import RunError
    from fl_lightning.runs import fit as fitting

    def fail(*_, **__):
        raise RunError("round 2: no valid update\nfrom any client")

    monkeypatch.setattr(fitting, "fit", fail)
    assert main(["fit", "--output", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "failed: round 2: no valid update from any client\n"


# Start-up and signals, in processes of their own


def test_help_takes_little_time_and_loads_neither_torch_nor_lightning():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command("--help"), capture_output=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize("argv", [["--help"], ["fit", "--help"]])
def test_help_loads_neither_torch_nor_lightning(argv):
    code = (
        "import sys\nfrom fl_lightning.cli import main\n"
        f"try:\n    main({argv!r})\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.rpartition("LOADED")[2].split()
    assert "fl_lightning" in loaded
    assert not {"torch", "lightning", "transformers", "peft", "numpy"} & set(loaded)


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_a_run_with_its_code_and_the_run_resumes(micro_base, tmp_path, number, code):
    small = [*SMALL, "--model.name_or_path", micro_base, "--output", tmp_path]
    process = Forked(["fit", "--rounds", 500, *small], tmp_path)
    process.wait_for("round 1 of 500")
    process.send_signal(number)
    status, rest = process.finish()
    assert status == code, rest
    assert "Traceback" not in rest
    folder = tmp_path / "version_0"
    assert f"fl-lightning fit --resume {folder} continues" in rest
    done = max(checkpoints(folder))
    assert main(["fit", "--resume", "last", "--output", str(tmp_path), "--rounds", str(done + 1)]) == 0
    assert max(checkpoints(folder)) == done + 1
    assert [p.name for p in folder.rglob("*") if p.suffix in (".tmp", ".old")] == []
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + done + 1  # header, base, rounds
