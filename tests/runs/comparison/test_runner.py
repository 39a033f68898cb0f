import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import transformers
import yaml

from fl_lightning import signals
from fl_lightning.cli import main
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError, RunError
from fl_lightning.runs import fit as fitting
from fl_lightning.runs.comparison.plan import config_names, find_comparison, make_plan, read_plan, split_configs
from fl_lightning.storage.run_folder import locked

FEDAVG = "training: {learning_rate: 5.0e-3}\nfederation: {combiner: fedavg, dept_clusters: {enabled: false}}\n"
CLUSTERED = "# with groups\ntraining: {learning_rate: 5.0e-3}\nfederation: {flora: {momentum: 1.0}}\n"
pytestmark = pytest.mark.xdist_group("comparison")
FILES = {"compare.json", "comparison.csv", "comparison.json", "comparison.png"}


@pytest.fixture(autouse=True)
def _put_process_back():
    """The command line sets up logging and signal handlers for a process of its own."""
    names = ("fl_lightning", "lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = dict(os.environ)
    transformers.utils.logging.disable_progress_bar()
    yield
    for logger, (own, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = own, propagate
        logger.setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def root(cut_departments, tmp_path_factory):
    """A client of each bundled department with 2 training and 2 held-out records, and who belongs together."""
    folder = cut_departments(tmp_path_factory.mktemp("departments"), 1, 2, 2)
    clusters = [["finance", "customer_support"], ["engineering"], ["hr"]]
    (folder / "structure.json").write_text(json.dumps({"true_department_clusters": clusters}))
    return folder


@pytest.fixture(scope="module")
def tiny(root, micro_base):
    """Arguments of runs that take a moment."""
    small = "--rounds 1 --max-records 2 --clients-per-dept 1 --device-map cpu --logging.samples 0"
    return [*small.split(), "--model.name_or_path", micro_base, "--data", str(root)]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, text in (("fedavg", FEDAVG), ("clustered", CLUSTERED)):
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in ("fedavg", "clustered")]


@pytest.fixture(scope="module")
def undisturbed(tiny, configs, tmp_path_factory):
    """A comparison of two configs with two seeds."""
    output = tmp_path_factory.mktemp("undisturbed")
    argv = ["compare", "--config", *configs, "--seeds", "2", "--seed", "7", "--output", str(output)]
    assert main([*argv, *tiny]) == 0
    return output / "compare_0"


def rows(folder, drop=("run_seconds",)):
    with open(folder / "comparison.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in drop} for row in csv.DictReader(file)]


# The plan


def test_files_after_config_end_at_the_next_flag():
    argv = ["--config", "a.yaml", "b.yaml", "--target-modules", "q_proj", "k_proj", "--config=c.yaml", "--rounds", "2"]
    wanted = ["a.yaml", "b.yaml", "c.yaml"], ["--target-modules", "q_proj", "k_proj", "--rounds", "2"]
    assert split_configs(argv) == wanted


def test_names_are_distinct_safe_and_not_those_of_other_files():
    paths = ["x/a.yaml", "y/a.yaml", "a_2.yaml", "a b.yaml", ".yaml", "compare.json.yaml", "configs.yaml", "é.yaml"]
    assert config_names(paths) == ["a", "a_2", "a_2_2", "a_b", "yaml", "compare.json_2", "configs_2", "_"]
    assert len(config_names(["n" * 250])[0]) == 80


def test_overrides_and_seeds_go_to_all_configs(configs):
    plan = make_plan(["--config", *configs, "--rounds", "4", "--lora.r=2", "--seed", "5"], "3")
    assert list(plan.configs) == ["fedavg", "clustered"]
    assert {(c.federation.rounds, c.lora.r) for c in plan.configs.values()} == {(4, 2)}
    assert plan.seeds == [5, 6, 7]
    assert plan.overrides == ["--rounds", "4", "--lora.r=2", "--seed", "5"]


# Bad input: exit code 2, one line, nothing written


def refused(argv, words, folder, capfd):
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    code = main(["compare", *argv])
    err = capfd.readouterr().err
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err
    assert re.search("expected|--help lists the arguments", err)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", ["no --config"]),
        ("a.yaml", ["no --config"]),
        ("--config", ["--config: expected", "got no value"]),
        ("--config {tmp}/a.yaml --config= --rounds 1", ["--config: expected", "got no value"]),
        ("--config {tmp}/a.yaml {tmp}/none.yaml", ["{tmp}/none.yaml", "No such file or directory"]),
        ("--config {tmp}/a.yaml {tmp}/bad.yaml", ["{tmp}/bad.yaml:2", "federation.rounds", "many"]),
        ("--config {tmp}/a.yaml {tmp}/high.yaml --lora.r=0", ["lora.r", "at least 1"]),
        ("--config {tmp}/a.yaml --seeds 0", ["--seeds: expected", "1 or more, got '0'"]),
        ("--config {tmp}/a.yaml --seeds two", ["--seeds: expected", "got 'two'"]),
        ("--config {tmp}/a.yaml --seeds", ["--seeds: expected a value, got none"]),
        ("--config {tmp}/a.yaml --seeds 2 --zzz 3", ["unknown argument --zzz"]),
        ("--config {tmp}/a.yaml {tmp}/data.yaml", ["{tmp}/data.yaml: data.root", "elsewhere", "{tmp}/a.yaml"]),
        ("--config {tmp}/a.yaml {tmp}/seed.yaml", ["{tmp}/seed.yaml: seed: expected 1234", "got 7", "--seed"]),
        (
            "--config {tmp}/a.yaml --fabric.num_nodes=2",
            ["{tmp}/a.yaml: fabric.num_nodes: expected 1 and no torchrun, got 2"],
        ),
        ("--config {tmp}/a.yaml {tmp}/high.yaml --data {tmp}/none", ["{tmp}/a.yaml: data.root", "{tmp}/none"]),
        ("--config {tmp}/a.yaml --output {tmp}/a.yaml", ["output: {tmp}/a.yaml is a file"]),
        ("--resume last", ["--resume last", "{tmp}/out"]),
        ("--resume {tmp}/none", ["{tmp}/none", "without compare.json"]),
        ("--resume {tmp}", ["without compare.json"]),
        ("--resume", ["--resume: expected a value, got none"]),
        ("--resume last --rounds 3", ["--rounds", "--by-department"]),
        ("--resume {tmp}/odd", ["{tmp}/odd/compare.json"]),
    ],
)
def test_bad_input(argv, words, tmp_path, capfd):
    texts = {"a": FEDAVG, "bad": "federation:\n  rounds: many\n", "high": CLUSTERED, "seed": "seed: 7\n"}
    for name, text in {**texts, "data": "data: {root: elsewhere}\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/compare.json").write_text('{"configs": {}, "seeds": [1]}')
    given = [item.format(tmp=tmp_path) for item in argv.split()]
    given += [] if "--output" in given else ["--output", str(tmp_path / "out")]
    refused(given, [word.format(tmp=tmp_path) for word in words], tmp_path, capfd)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"configs": {"a": "a.yaml"}, "overrides": [], "seeds": []},
        {"configs": {"a": "a.yaml"}, "overrides": [1], "seeds": [1]},
        {"configs": {"a": "a.yaml"}, "overrides": [], "seeds": ["1"]},
        {"configs": {"../a": "a.yaml"}, "overrides": [], "seeds": [1]},
        {"configs": {"a": "a.yaml"}, "overrides": [], "seeds": [1]},  # no configs/a.yaml
    ],
)
def test_plan_of_another_shape_is_refused(value, tmp_path):
    (tmp_path / "compare.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="wanted|expected"):
        read_plan(tmp_path)


def test_last_is_the_highest_number(tmp_path):
    for number in (2, 10, 11):
        (tmp_path / f"compare_{number}").mkdir()
        if number < 11:
            (tmp_path / f"compare_{number}/compare.json").write_text("{}")
    assert find_comparison("last", tmp_path).name == "compare_10"
    assert find_comparison("compare_2", tmp_path) == tmp_path / "compare_2"


def test_help_is_short_and_loads_nothing_heavy(capsys):
    code = (
        "import sys\nfrom fl_lightning.cli import main\nmain(['compare', '--help'])\n"
        "print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert "--by-department" in text
    assert not {"torch", "lightning", "transformers", "peft", "numpy", "scipy", "matplotlib"} & set(loaded.split())
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out


# Whole comparisons


@pytest.mark.slow
def test_every_config_runs_with_every_seed(undisturbed, configs):
    assert {p.name for p in undisturbed.iterdir()} == {*FILES, ".lock", "configs", "fedavg", "clustered"}
    assert (undisturbed / "configs/clustered.yaml").read_text() == CLUSTERED
    plan = json.loads((undisturbed / "compare.json").read_text())
    assert plan["configs"] == {"fedavg": configs[0], "clustered": configs[1]}
    assert plan["seeds"] == [7, 8]
    for name in ("fedavg", "clustered"):
        for seed in (7, 8):
            place = undisturbed / name / f"seed_{seed}"
            assert sorted(p.name for p in place.iterdir()) == ["run.json", "version_0"]
            assert yaml.safe_load((place / "version_0/config.yaml").read_text())["seed"] == seed
            assert json.loads((place / "run.json").read_text())["state"] == "finished"
    found = rows(undisturbed)
    assert len(found) == 2 * 2 * 4
    assert [row["run_ari"] != "" for row in found] == [False] * 8 + [True] * 8
    assert (undisturbed / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_is_the_run_that_fit_makes(undisturbed, tiny, configs, tmp_path):
    argv = ["--config", configs[1], *tiny, "--seed", "8", "--output", str(tmp_path)]
    alone = fitting.fit(parse_config(argv))
    for name in ("federated_eval.json", "adapters/hr/adapter_model.safetensors"):
        assert (undisturbed / "clustered/seed_8/version_0" / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_resuming_what_is_finished_prints_the_table_again(undisturbed, capfd, monkeypatch):
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("a finished run was run again"))
    before = rows(undisturbed, drop=())
    (undisturbed / "comparison.csv").unlink()
    argv = ["compare", "--resume", "last", "--output", str(undisturbed.parent), "--by-department"]
    assert main(argv) == 0
    out = capfd.readouterr().out
    for words in ("fedavg", "clustered", "loss against fedavg", "4 departments", "hr", "partition of the data"):
        assert words in out
    assert rows(undisturbed, drop=()) == before
    with locked(undisturbed):
        assert main(argv) == 2


@pytest.mark.slow
def test_interrupted_comparison_goes_on_and_ends_the_same(undisturbed, tiny, configs, tmp_path, capfd, monkeypatch):
    fit, check, runs = fitting.fit, signals.check, []

    def counted(config, **options):
        runs.append((config.federation.combiner, config.seed))
        return fit(config, **options)

    def interrupted():
        if len(runs) == 2:  # Ctrl-C in the second run
            os.kill(os.getpid(), signal.SIGINT)
        check()

    monkeypatch.setattr(fitting, "fit", counted)
    monkeypatch.setattr(signals, "check", interrupted)
    argv = ["compare", "--config", *configs, "--seeds", "2", "--seed", "7", "--output", str(tmp_path)]
    assert main([*argv, *tiny]) == 130
    folder = tmp_path / "compare_0"
    assert f"compare --resume {folder} continues" in capfd.readouterr().err
    assert runs == [("fedavg", 7), ("flora", 7)]
    notes = [json.loads((folder / f"{name}/seed_7/run.json").read_text()) for name in ("fedavg", "clustered")]
    assert [note["state"] for note in notes] == ["finished", "stopped"]
    assert not (folder / "comparison.json").exists()

    monkeypatch.setattr(signals, "check", check)
    shutil.move(folder, tmp_path / "elsewhere")  # a comparison can be moved
    assert main(["compare", "--resume", str(tmp_path / "elsewhere")]) == 0
    assert runs[2:] == [("flora", 7), ("fedavg", 8), ("flora", 8)]
    assert rows(tmp_path / "elsewhere") == rows(undisturbed)
    seconds = {(row["config"], row["seed"]): row["run_seconds"] for row in rows(tmp_path / "elsewhere", drop=())}
    assert all(float(value) > 0 for value in seconds.values())


@pytest.mark.slow
def test_a_run_that_was_killed_is_resumed_and_took_nobody_knows_how_long(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    (folder / "fedavg/seed_8/run.json").unlink()
    assert main(["compare", "--resume", str(folder)]) == 0
    assert rows(folder) == rows(undisturbed)
    unknown = {(row["config"], row["seed"]) for row in rows(folder, drop=()) if row["run_seconds"] == ""}
    assert unknown == {("fedavg", "8")}


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_tried_again(tiny, configs, tmp_path, capfd, monkeypatch):
    fit = fitting.fit

    def fail(config, **options):
        raise RunError("round 1: no valid update\nfrom any client")

    argv = ["compare", "--config", configs[0], configs[0], "--seeds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(fitting, "fit", lambda config, **o: (fail if "fedavg_2" in config.output else fit)(config, **o))
    assert main([*argv, *tiny]) == 1
    out, err = capfd.readouterr()
    assert "fedavg_2, seed 1234 failed: round 1: no valid update from any client" in out
    assert "tries them again" in err.splitlines()[-1]
    monkeypatch.setattr(fitting, "fit", fit)
    assert main(["compare", "--resume", "last", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "compare_0/comparison.json").read_text())
    assert found["failed"] == {}
    assert found["configs"]["fedavg_2"]["loss_against_first"]["interval"] == {"mean": 0.0, "half_width": None, "n": 1}


@pytest.mark.slow
def test_comparison_whose_first_run_is_refused_leaves_nothing(tiny, tmp_path, capfd):
    (tmp_path / "a.yaml").write_text("logging: {loggers: [{class_path: no.such.Logger}]}\n")
    argv = ["--config", str(tmp_path / "a.yaml"), *tiny, "--output", str(tmp_path / "out")]
    assert main(["compare", *argv]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/a.yaml, seed 1234: logging.loggers[0]: no.such.Logger")
    assert list((tmp_path / "out").iterdir()) == []
