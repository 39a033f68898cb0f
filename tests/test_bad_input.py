"""Malformed config, data, models, run folders and arguments: exit code 2, one line, and nothing changed on disk."""

import json
import logging
import os
import pickle
import re
import shutil
import signal

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fl_lightning.runs.fit  # noqa: F401  (its imports, cut off by the alarm of a case, would fail all others)
from fl_lightning import bundled
from fl_lightning.cli import main
from fl_lightning.storage.manifest import write_manifest
from fl_lightning.storage.run_folder import locked

GOOD = '{"prompt": "a", "completion": "b"}\n'
DEPARTMENTS = ("finance", "hr")
# What to do about it, or what is wanted; the table says of each line what was got and where.
FIX = re.compile(
    r"want|expected|did you mean|choose|remove|rename|save the file|keep one|add |start a new run|start the run again"
    r"|unknown key|not finite|name a|only the following|wait for it|ask for fewer|give a|run 'fit'"
    r"|write the values out|Example choices"
)


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


@pytest.fixture(autouse=True)
def _no_case_hangs():
    """Whoever opens a FIFO waits for ever."""

    def stop(*_):
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def on_disk(folder):
    """{path: what is there}, but for the lock of a run and what a killed process left."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == ".lock" or re.search(r"(^|/)\.[^/]*\.tmp(/|$)", name):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "special"
    return found


def check(argv, words, folder, capfd):
    """Run a command that is to be refused: all that it prints on stderr."""
    before = on_disk(folder)
    os.environ["COLUMNS"] = "2000"
    capfd.readouterr()
    code = main(argv)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert FIX.search(lines[0]), f"no fix in {lines[0]}"
    assert len(lines[0]) < 1000
    assert "Traceback" not in out + err
    after = on_disk(folder)
    assert [name for name in before | after if before.get(name) != after.get(name)] == []


def put(files):
    """A breaker that writes {path: text or bytes}; a path that ends in / is an empty folder."""

    def write(folder):
        for name, content in files.items():
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def all_of(*breakers):
    def apply(folder):
        for breaker in breakers:
            breaker(folder)

    return apply


def link(name, target):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def fifo(name):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


# Arguments. (arguments after the command, what is on the disk, words of the line). {tmp} is the test's folder.

ARGUMENTS = {
    "config without value": ("fit --config", None, ["--config"]),
    "missing config": ("fit --config {tmp}/none.yaml", None, ["--config {tmp}/none.yaml", "cannot be read"]),
    "misspelt flag": ("fit --ronds 3", None, ["--ronds", "did you mean 'rounds'"]),
    "misspelt dotted key": ("fit --federation.ronds=3", None, ["did you mean 'federation.rounds'"]),
    "stray word": ("fit everything", None, ["everything"]),
    "no rounds": ("fit --rounds 0", None, ["federation.rounds", "got 0", "at least 1"]),
    "negative rounds": ("fit --rounds -1", None, ["federation.rounds", "-1", "at least 1"]),
    "rounds not a number": ("fit --rounds many", None, ["federation.rounds", "many"]),
    "rounds without value": (
        "fit --rounds --seed 1",
        None,
        ["--rounds: expected a value for federation.rounds"],
    ),
    "zero rate": ("fit --learning-rate 0", None, ["training.learning_rate", "above 0"]),
    "infinite rate": ("fit --learning-rate inf", None, ["training.learning_rate", "inf"]),
    "rate that is nan": ("fit --learning-rate nan", None, ["training.learning_rate", "nan"]),
    "zero momentum": ("fit --federation.flora.momentum=0", None, ["federation.flora.momentum", "(0, 1]"]),
    "ratio above one": ("fit --global-mix 1.5", None, ["federation.client_clusters.global_mix", "1.5", "[0, 1]"]),
    "zero rank": ("fit --lora-r 0", None, ["lora.r", "at least 1"]),
    "rank with a fraction": ("fit --lora-r 8.5", None, ["lora.r", "8.5"]),
    "full dropout": ("fit --lora-dropout 1", None, ["lora.lora_dropout", "[0, 1)"]),
    "negative seed": ("fit --seed -1", None, ["seed", "-1", "at least 0"]),
    "unknown dtype": ("fit --dtype fp8", None, ["fabric.precision", "fp8"]),
    "fp16 on a CPU": ("fit --dtype fp16", None, ["fabric.precision", "fp16"]),
    "unknown device": ("fit --device-map tpu9", None, ["fabric.accelerator", "tpu9"]),
    "unknown strategy": ("fit --fabric.strategy=magic", None, ["magic"]),
    "switch with a value": ("fit --load-in-4bit=yes", None, ["--load-in-4bit", "yes", "model.load_in_4bit"]),
    "no module name": (
        "fit --target-modules",
        None,
        ["--target-modules: expected a value for lora.target"],
    ),
    "output is a file": ("fit --output {tmp}/file", put({"file": ""}), ["output", "{tmp}/file"]),
    "output below a file": ("fit --output {tmp}/file/logs", put({"file": ""}), ["output", "{tmp}/file"]),
    "output of too long a name": ("fit --output {tmp}/" + "o" * 300, None, ["output", "{tmp}/ooo"]),
    "data folder of too long a name": ("fit --data {tmp}/" + "d" * 300, None, ["data.root", "expected a folder"]),
    "model of too long a name": ("fit --model.name_or_path={tmp}/" + "m" * 300, None, ["model.name_or_path", "{tmp}"]),
    "unknown bundled data": (
        "fit --data bundled:departmens",
        None,
        ["bundled:departmens", "did you mean 'departments'"],
    ),
    "nothing to resume": ("fit --resume last", None, ["'last'", "{tmp}/out"]),
    "run to resume is missing": ("fit --resume {tmp}/none", None, ["{tmp}/none", "config.yaml"]),
    "run to resume is a file": ("fit --resume {tmp}/file", put({"file": ""}), ["{tmp}/file", "config.yaml"]),
    "run of too long a name": ("fit --resume {tmp}/" + "r" * 300, None, ["{tmp}/rrr", "config.yaml"]),
    "resume without value": ("fit --resume", None, ["--resume: expected a value, got none"]),
    "resume with an empty value": ("fit --resume=", None, ["--resume: expected a value, got none"]),
    "evaluate without run": ("evaluate", None, ["--run"]),
    "evaluate with an empty run": ("evaluate --run=", None, ["--run: expected a value, got none"]),
    "evaluate a missing run": ("evaluate --run {tmp}/none", None, ["{tmp}/none"]),
    "evaluate nothing": ("evaluate --run last --output {tmp}/out", None, ["'last'", "{tmp}/out"]),
    "evaluate with a misspelt flag": ("evaluate --rum last", None, ["--rum", "did you mean '--run'"]),
    "evaluate with a flag of fit": ("evaluate --run last --rounds 2", None, ["--rounds"]),
    "unknown command": ("fitt --rounds 1", None, ["'fitt'", "did you mean 'fit'"]),
    "command that is a flag": ("--rounds 1", None, ["'--rounds'", "fit"]),
}


def fill(arguments, words, tmp_path):
    argv = [argument.format(tmp=tmp_path) for argument in arguments.split()]
    if argv[0] == "fit":
        defaults = {"--output": tmp_path / "out", "--clients-per-dept": "1", "--device-map": "cpu", "--rounds": "1"}
        argv[1:1] = [str(x) for flag, value in defaults.items() if flag not in argv for x in (flag, value)]
    return argv, [word.format(tmp=tmp_path) for word in words]


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case, tmp_path, capfd):
    arguments, prepare, words = ARGUMENTS[case]
    if prepare is not None:
        prepare(tmp_path)
    check(*fill(arguments, words, tmp_path), tmp_path, capfd)


# Configs. (bad.yaml, words of the line: what follows its name, then others)

LAUGHS = "seed: 1\nlogging:\n  loggers:\n  - &a0 {class_path: ha}\n"
LAUGHS += "".join(f"  - &a{i} {{class_path: x, init_args: {{a: *a{i - 1}, b: *a{i - 1}}}}}\n" for i in range(1, 40))

CONFIGS = {
    "misspelt key": ("seed: 1\nfederation:\n  ronds: 3\n", [":3", "federation.ronds", "'rounds'"]),
    "misplaced key": ("seed: 1\nrounds: 3\n", [":2", "'federation.rounds'"]),
    "unknown block": ("seed: 1\nserver:\n  port: 80\n", [":2", "unknown key 'server'"]),
    "key that is a number": ("1: 2\n", [":1", "unknown key '1'"]),
    "key that is a list": ("? [seed, output]\n: 1\n", [":1", "unknown key"]),
    "key that is null": ("seed: 1\n~: 1\n", [":2", "unknown key 'null'"]),
    "merge key": ("seed: 1\n<<: {output: x}\n", [":2", "unknown key '<<'"]),
    "wrong type": ("seed: 1\nfederation:\n  rounds: many\n", [":3", "rounds", "many"]),
    "broken": ("seed: 1\nfederation: [\n", [":", "not valid YAML"]),
    "tab": ("seed: 1\nfederation:\n\trounds: 3\n", [":3", "not valid YAML"]),
    "bad indent": ("federation:\n  rounds: 3\n seed: 1\n", [":3", "not valid YAML"]),
    "colon missing": ("seed 1\noutput: x\n", [":2", "not valid YAML"]),
    "unknown anchor": ("seed: *there\n", [":1", "not valid YAML", "there"]),
    "several documents": ("seed: 1\n---\nseed: 2\n", [":2", "not valid YAML"]),
    "JSON cut off": ('{"seed": 1, "federation": {"rounds"', [":1", "not valid YAML"]),
    "list": ("- seed\n", [":1", "expected a mapping"]),
    "word": ("seed\n", [":1", "expected a mapping"]),
    "empty": ("", ["", "expected at least one key"]),
    "comments only": ("# seed: 1\n", ["", "expected at least one key"]),
    "null document": ("null\n", [":1", "expected a mapping"]),
    "key twice": ("seed: 1\nseed: 2\n", [":2", "'seed'", "twice"]),
    "nested key twice": ("lora:\n  r: 8\n  lora_alpha: 2\n  r: 4\n", [":4", "'lora.r'", "twice"]),
    "block twice": ("lora: {r: 8}\nseed: 1\nlora: {r: 4}\n", [":3", "'lora'", "twice"]),
    "null block": ("seed: 1\nfederation: null\n", [":2: federation: ", "null"]),
    "block left empty": ("federation:\n  flora:\n  rounds: 2\n", [":2: federation.flora: ", "null"]),
    "list as block": ("seed: 1\nlora: [r, 8]\n", [":2: lora: ", "list"]),
    "number as block": ("training: 5\n", [":1: training: ", "5"]),
    "null value": ("seed: 1\nfederation:\n  rounds: null\n", [":3", "federation.rounds", "null"]),
    "NaN rate": ("training:\n  learning_rate: .nan\n", [":2", "training.learning_rate", "nan"]),
    "infinite rate": ("training:\n  learning_rate: .inf\n", [":2", "training.learning_rate", "inf"]),
    "NaN dropout": ("lora:\n  lora_dropout: .nan\n", [":2", "lora.lora_dropout", "nan"]),
    "NaN norm": ("training:\n  max_grad_norm: .nan\n", [":2", "training.max_grad_norm", "nan"]),
    "NaN rounds": ("federation:\n  rounds: .nan\n", [":2", "federation.rounds", "nan"]),
    "infinite rounds": ("federation:\n  rounds: .inf\n", [":2", "federation.rounds", "inf"]),
    "bool as integer": ("federation:\n  rounds: true\n", [":2", "federation.rounds", "rue"]),
    "bool as number": ("lora:\n  lora_alpha: true\n", [":2", "lora.lora_alpha", "rue"]),
    "integer as bool": ("model:\n  load_in_4bit: 3\n", [":2", "model.load_in_4bit", "3"]),
    "word as bool": ("model:\n  load_in_4bit: perhaps\n", [":2", "model.load_in_4bit", "perhaps"]),
    "list as integer": ("lora:\n  r: [8]\n", [":2", "lora.r", "8"]),
    "mapping as integer": ("lora:\n  r: {value: 8}\n", [":2", "lora.r", "value"]),
    "fraction as integer": ("lora:\n  r: 8.5\n", [":2", "lora.r", "8.5"]),
    "negative seed": ("seed: -1\n", [":1", "seed", "-1"]),
    "huge seed": ("seed: 1" + "0" * 5000 + "\n", [":1", "5,001"]),
    "huge exponent": ("training:\n  learning_rate: 1.0e+999\n", [":2", "training.learning_rate", "inf"]),
    "unknown choice": ("federation:\n  share: c\n", [":2", "federation.share", "c"]),
    "word as list": ("lora:\n  target_modules: q_proj\n", [":2", "lora.target_modules", "q_proj"]),
    "empty list": ("lora:\n  target_modules: []\n", [":2", "lora.target_modules"]),
    "numbers in a list": ("lora:\n  target_modules: [1, 2]\n", [":2", "lora.target_modules"]),
    "null in a list": ("lora:\n  target_modules: [q_proj, null]\n", [":2", "lora.target_modules"]),
    "empty name": ("model:\n  name_or_path: ''\n", [":2", "model.name_or_path"]),
    "logger that is a word": ("logging:\n  loggers: [CSVLogger]\n", [":2", "logging.loggers"]),
    "logger without class": ("logging:\n  loggers: [{name: x}]\n", [":2", "logging.loggers"]),
    "loggers that are a mapping": ("logging:\n  loggers: {class_path: x}\n", [":2", "logging.loggers"]),
    "two keys that exclude each other": (
        "federation:\n  clients_per_round: 1\n  client_fraction: 0.5\n",
        [":3", "federation.client_fraction", "clients_per_round"],
    ),
    "clusters upside down": (
        "federation:\n  dept_clusters: {min_clusters: 4, max_clusters: 2}\n",
        [":2", "federation.dept_clusters.max_clusters", "at least min_clusters (4)"],
    ),
    "anchors within anchors": (LAUGHS, ["", "anchor"]),
    "anchor in itself": ("logging: &a\n  loggers: [*a]\n", [":", "anchor"]),
    "python object": ("output: !!python/object/apply:os.system ['true']\n", [":1", "os.system", "remove the tag"]),
    "unknown tag": ("output: !secret x\n", [":1", "!secret"]),
    "date": ("output: 2024-01-01\nseed: 2024-01-01\n", [":2", "seed"]),
    "set": ("seed: !!set {a, b}\n", [":1", "remove the tag"]),
    "nested without end": ("seed: " + "[" * 3000, ["", "not valid YAML", "deep"]),
    "binary": (b"\x00\x01\x02\x03seed: 1", ["", "not valid YAML"]),
    "not UTF-8": (b"output: caf\xe9\n", ["", "not UTF-8", "byte 11"]),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ["", "not UTF-8", "byte 0"]),
    "zip file": (b"PK\x03\x04" + bytes(range(256)), ["", "not UTF-8"]),
    "folder": (lambda folder: (folder / "bad.yaml").mkdir(), ["", "cannot be read"]),
    "FIFO": (fifo("bad.yaml"), ["", "cannot be read"]),
    "link to itself": (link("bad.yaml", "bad.yaml"), ["", "cannot be read"]),
    "link to nowhere": (link("bad.yaml", "nowhere"), ["", "cannot be read"]),
    "device": (link("bad.yaml", "/dev/zero"), ["", "cannot be read"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_config(case, tmp_path, capfd):
    content, words = CONFIGS[case]
    (content if callable(content) else put({"bad.yaml": content}))(tmp_path)
    argv = ["fit", "--output", str(tmp_path / "out"), "--config", str(tmp_path / "bad.yaml")]
    check(argv, [f"{tmp_path}/bad.yaml{words[0]}", *words[1:]], tmp_path, capfd)


# Data. ({path below data/: content} or a function, words of the line)


def client(train=GOOD, evaluation=GOOD, name="hr/client_0"):
    return put({f"data/{name}/train.jsonl": train, f"data/{name}/eval.jsonl": evaluation})


def line_2(line, *words):
    """A client whose second training record is bad."""
    return client(GOOD + line + "\n" + GOOD), ["{tmp}/data/hr/client_0/train.jsonl:2", *words]


def one_file(text, *words):
    """A client in one .json file."""
    return put({"data/hr/client_0.json": text}), ["{tmp}/data/hr/client_0.json", *words]


TRAIN = "{tmp}/data/hr/client_0/train.jsonl"
RECORDS = {
    "cut off": line_2('{"prompt": "a", "completion"', "not valid JSON"),
    "single quotes": line_2("{'prompt': 'a', 'completion': 'b'}", "not valid JSON", "column 2"),
    "two in a line": line_2(GOOD.strip() + GOOD.strip(), "not valid JSON", "Extra data"),
    "list": line_2('["a", "b"]', "got list"),
    "number": line_2("5", "got int"),
    "null": line_2("null", "got NoneType"),
    "text": line_2('"a"', "got str"),
    "empty object": line_2("{}", "instruction"),
    "unknown keys": line_2('{"question": "a", "answer": "b"}', "['answer', 'question']"),
    "no response": line_2('{"instruction": "Add", "input": "1 1"}', "response", "'output'"),
    "no prompt": line_2('{"completion": "b"}', "'prompt': expected text, got nothing"),
    "empty response": line_2('{"prompt": "a", "completion": "  "}', "response", "'completion'"),
    "response that is a number": line_2('{"prompt": "a", "completion": 5}', "'completion': expected text, got 5"),
    "response that is NaN": line_2('{"prompt": "a", "completion": NaN}', "'completion': expected text, got nan"),
    "response that is null": line_2('{"prompt": "a", "completion": null}', "'completion'"),
    "input that is a list": line_2(
        '{"instruction": "a", "input": ["b"], "output": "c"}', "'input': expected parts of the type text, got 'str'"
    ),
    "text that is an object": line_2('{"text": {"value": "a"}}', "'text'"),
    "empty text": line_2('{"text": ""}', "'text'"),
    "no message": line_2('{"messages": []}', "'messages'", "at least one"),
    "messages that are text": line_2('{"messages": "hello"}', "'messages'", "list"),
    "message that is text": line_2('{"messages": ["hello"]}', "message 0"),
    "message without role": line_2('{"messages": [{"content": "a"}]}', "message 0", "role"),
    "message of an unknown role": line_2('{"messages": [{"role": "bot", "content": "a"}]}', "message 0", "assistant"),
    "message whose role is a list": line_2('{"messages": [{"role": ["user"], "content": "a"}]}', "message 0"),
    "message without content": line_2('{"messages": [{"role": "user"}]}', "'content'"),
    "messages without an answer": line_2('{"messages": [{"role": "user", "content": "a"}]}', "assistant"),
    "half a surrogate pair": line_2('{"prompt": "\\ud800", "completion": "b"}', "'prompt'", "surrogate"),
    "NUL byte": line_2('{"prompt": "\0", "completion": "b"}', "not valid JSON", "control character"),
    "nested without end": line_2("[" * 200_000, "deep"),
    "nested and closed": line_2('{"text": ' + "[" * 50_000 + "]" * 50_000 + "}", "deep"),
    "long line cut off": line_2('{"prompt": "' + "a" * 5_000_000, "not valid JSON"),
    "long digits": line_2('{"text": 1' + "0" * 5000 + "}", "digits"),
    "long list": line_2('{"text": [' + "1, " * 100_000 + "1]}", "'text'"),
    "long keys": line_2(json.dumps({"k" * 10_000: 1}), "instruction"),
    "empty file": (client(""), [TRAIN, "no records"]),
    "blank lines only": (client("\n \n\n"), [TRAIN, "no records"]),
    "empty eval file": (client(evaluation=""), ["{tmp}/data/hr/client_0/eval.jsonl", "no records"]),
    "broken eval file": (client(evaluation="{"), ["{tmp}/data/hr/client_0/eval.jsonl:1", "not valid JSON"]),
    "not UTF-8": (client(b'{"text": "caf\xe9"}\n'), [TRAIN, "not UTF-8", "byte 13"]),
    "UTF-16": (client(GOOD.encode("utf-16")), [TRAIN, "not UTF-8", "byte 0"]),
    "gzip": (client(b"\x1f\x8b\x08" + bytes(range(256))), [TRAIN, "not UTF-8"]),
    "object as .json": one_file('{"text": "a"}', "got dict", "list"),
    "lines as .json": one_file(GOOD + GOOD, ":2", "not valid JSON"),
    "empty .json": one_file("", "not valid JSON"),
    "empty list as .json": one_file("[]", "no records"),
    "null in a .json list": one_file(f"[{GOOD}, null]", "record 1", "NoneType"),
    "nested .json": one_file("[" * 200_000, "deep"),
    "one record to split": (put({"data/hr/client_0.jsonl": GOOD}), ["{tmp}/data/hr/client_0.jsonl", "at least 2"]),
}
LAYOUTS = {
    "structure cut off": (
        put({"data/structure.json": "{", "data/hr/a.jsonl": GOOD * 2}),
        ["structure.json", "not valid JSON"],
    ),
    "nothing": (None, ["data.root", "{tmp}/data", "expected a folder"]),
    "file": (put({"data": GOOD}), ["data.root", "{tmp}/data", "expected a folder"]),
    "link to itself": (link("data", "data"), ["data.root", "{tmp}/data"]),
    "no department": (put({"data/": ""}), ["no department in {tmp}/data"]),
    "department that is a file": (put({"data/hr": GOOD}), ["no department in {tmp}/data"]),
    "department without clients": (put({"data/hr/": ""}), ["no department in {tmp}/data"]),
    "client without records": (put({"data/hr/client_0/": ""}), ["no department in {tmp}/data"]),
    "links in a circle": (link("data/hr/client_0", "../hr"), ["no department in {tmp}/data"]),
    "client that links to itself": (link("data/hr/client_0.jsonl", "client_0.jsonl"), ["client_0.jsonl", "read"]),
    "client that links to nowhere": (link("data/hr/client_0.jsonl", "nowhere"), ["client_0.jsonl", "read"]),
    "client that is a FIFO": (fifo("data/hr/client_0.jsonl"), ["{tmp}/data/hr/client_0.jsonl", "read"]),
    "client that is a device": (link("data/hr/client_0.jsonl", "/dev/zero"), ["hr/client_0.jsonl", "read"]),
    "train that is a FIFO": (all_of(client(), fifo(TRAIN[6:])), ["{tmp}/data/hr/client_0", "train.jsonl"]),
    "train that links to nowhere": (all_of(client(), link(TRAIN[6:], "x")), ["{tmp}/data/hr/client_0", "train.jsonl"]),
    "eval without train": (put({"data/hr/client_0/eval.jsonl": GOOD}), ["{tmp}/data/hr/client_0", "without train"]),
    "client twice": (all_of(client(), put({"data/hr/client_0.jsonl": GOOD})), ["'client_0'", "twice"]),
    "client as .json and .jsonl": (
        put({"data/hr/client_0.json": "[]", "data/hr/client_0.jsonl": GOOD}),
        ["'client_0'", "twice"],
    ),
    "department twice": (
        all_of(client(), client(name="hr_personal_clients/client_0")),
        ["'hr'", "two folders", "keep one"],
    ),
    "unsafe client": (client(name="hr/client 0;rm"), ["client 0;rm", "rename"]),
    "unsafe department": (client(name="h r/client_0"), ["'h r'", "rename"]),
    "department without a name": (client(name="_personal_clients/client_0"), ["department ''", "rename"]),
    "client with a line break": (client(name="hr/client\n0"), ["client\\n0", "rename"]),
    "client of half a character": (client(name="hr/caf\udce9"), ["rename"]),
    "client of too long a name": (client(name="hr/" + "c" * 200), ["128", "rename"]),
    "too few clients": (client(), ["data.clients_per_dept", "department hr", "expected 2"]),
}


@pytest.mark.parametrize("case", [*(f"record, {c}" for c in RECORDS), *(f"layout, {c}" for c in LAYOUTS)])
def test_bad_data(case, tmp_path, capfd):
    kind, _, name = case.partition(", ")
    prepare, words = (RECORDS if kind == "record" else LAYOUTS)[name]
    if prepare is not None:
        prepare(tmp_path)
    arguments = "fit --data {tmp}/data" + (" --clients-per-dept 2" if name == "too few clients" else "")
    check(*fill(arguments, words, tmp_path), tmp_path, capfd)


# Models: what goes wrong with a copy of the bundled base. (what is changed in model/, words of the line)


def config_json(**changes):
    def change(folder):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return change


def weights(change):
    def apply(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return apply


def cut(name, length):
    def shorten(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return shorten


def gone(name):
    def remove(folder):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return remove


RAISING = "{{ raise_exception('after user must come assistant') }}"
MODELS = {
    "no config": (gone("config.json"), ["no config.json in {tmp}/model"]),
    "config cut off": (cut("config.json", 40), ["config.json"]),
    "config empty": (put({"config.json": ""}), ["config.json"]),
    "config a list": (put({"config.json": "[1]"}), []),
    "config null": (put({"config.json": "null"}), []),
    "config binary": (put({"config.json": b"\xff\xfe\x00"}), []),
    "config without type": (put({"config.json": "{}"}), ["model_type"]),
    "unknown type": (config_json(model_type="nosuch", architectures=["No"]), ["nosuch"]),
    "not a language model": (config_json(model_type="vit", architectures=["ViTModel"]), []),
    "text where a size is wanted": (config_json(hidden_size="many"), ["hidden_size"]),
    "null where a size is wanted": (config_json(hidden_size=None), []),
    "no heads": (config_json(num_attention_heads=0), []),
    "negative size": (config_json(hidden_size=-160), []),
    "other size than the weights": (config_json(intermediate_size=64), ["size"]),
    "no weights": (gone("model.safetensors"), ["model.safetensors"]),
    "weights cut off": (cut("model.safetensors", 100_000), []),
    "weights empty": (put({"model.safetensors": b""}), []),
    "weights garbage": (put({"model.safetensors": b"\xff" * 1000}), []),
    "weights without one tensor": (
        weights(lambda tensors: {n: t for n, t in tensors.items() if "layers.1.mlp.up" not in n}),
        ["model.layers.1.mlp.up_proj.weight"],
    ),
    "weights of another model": (weights(lambda tensors: {f"other.{n}": t for n, t in tensors.items()}), []),
    "weights as a pickle": (
        all_of(gone("model.safetensors"), put({"pytorch_model.bin": pickle.dumps(print)})),
        ["cannot be loaded"],
    ),
    "no tokenizer": (all_of(gone("tokenizer.json"), gone("tokenizer_config.json")), []),
    "no tokenizer.json": (gone("tokenizer.json"), []),
    "tokenizer cut off": (cut("tokenizer.json", 1000), []),
    "tokenizer a list": (put({"tokenizer.json": "[]"}), []),
    "tokenizer empty": (put({"tokenizer.json": ""}), []),
    "tokenizer config broken": (put({"tokenizer_config.json": "{"}), []),
    "template broken": (
        put({"chat_template.jinja": "{% for %}"}),
        ["chat template: expected a Jinja template", "in line 1"],
    ),
    "template that refuses": (put({"chat_template.jinja": RAISING}), ["train.jsonl:1", "chat template", "after user"]),
    "GGUF that is garbage": (put({"bad.gguf": b"GGUF" + b"\xff" * 100}), ["bad.gguf"]),
    "GGUF that is empty": (put({"bad.gguf": b""}), ["bad.gguf"]),
    "GGUF that is text": (put({"bad.gguf": "hello"}), ["bad.gguf"]),
    "GGUF that is missing": (put({"bad.gguf/": ""}), ["bad.gguf"]),
}
WRONG_MODELS = {
    "no such module": ("--target-modules nope_proj", ["lora.target_modules", "nope_proj"]),
    "module misspelt": ("--target-modules q_prj", ["lora.target_modules", "did you mean 'q_proj'"]),
    "module without weights": ("--target-modules act_fn", ["lora.target_modules", "SiLUActivation"]),
    "unknown model": ("--model.name_or_path=no-such-org/no-such-model", ["model.name_or_path", "no-such-org"]),
    "folder without model": ("--model.name_or_path={tmp}", ["no config.json in {tmp}"]),
    "file as model": ("--model.name_or_path={tmp}/model/config.json", ["no config.json in {tmp}/model/config.json"]),
    "unknown bundled model": ("--model.name_or_path=bundled:tiny_bas", ["did you mean 'tiny_base'"]),
    "name with blanks": ("--model.name_or_path=a/b:c?d", ["model.name_or_path", "a/b:c?d"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_model(case, tmp_path, capfd):
    spoil, words = MODELS[case]
    folder = shutil.copytree(bundled.resolve("bundled:tiny_base"), tmp_path / "model")
    spoil(folder)
    client()(tmp_path)
    name = "model/bad.gguf" if "GGUF" in case else "model"
    argv, words = fill("fit --data {tmp}/data --model.name_or_path={tmp}/" + name, words, tmp_path)
    check(argv, words if "template" in case else ["model.name_or_path", str(folder), *words], tmp_path, capfd)


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_model(case, tmp_path, capfd):
    arguments, words = WRONG_MODELS[case]
    put({"model/config.json": "{}"})(tmp_path)
    check(*fill(f"fit {arguments}", words, tmp_path), tmp_path, capfd)


# Run folders: what is wrong with a copy of a finished run. (arguments, what is changed in run/, words of the line)


@pytest.fixture(scope="module")
def finished(micro_base, tmp_path_factory):
    """A run of one round on two departments of one client, each with 4 records; beside its data."""
    root = tmp_path_factory.mktemp("finished")
    for department in DEPARTMENTS:
        folder = root / "data" / department / "client_0"
        folder.mkdir(parents=True)
        for split, count in (("train", 4), ("eval", 2)):
            lines = (bundled.resolve("bundled:departments") / department / "client_0" / f"{split}.jsonl").read_text()
            (folder / f"{split}.jsonl").write_text("".join(lines.splitlines(keepends=True)[:count]))
    small = "--clients-per-dept 1 --max-records 4 --learning-rate 5e-3 --device-map cpu --rounds 1 --logging.samples 0"
    small += f" --model.name_or_path {micro_base}"
    assert main(["fit", *small.split(), "--data", str(root / "data"), "--output", str(root / "logs")]) == 0
    return root


def change(name, edit):
    """A breaker that edits the JSON of a file."""

    def apply(folder):
        path = folder / name
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))

    return apply


def checkpoints_(*breakers):
    """The same done to both checkpoints of the run."""

    def apply(folder):
        for checkpoint in sorted((folder / "checkpoints").glob("round_*")):
            all_of(*breakers)(checkpoint)

    return apply


def fitting(*breakers):
    """To both checkpoints, with a manifest that fits what has become of them."""
    return checkpoints_(*breakers, write_manifest)


def state(edit):
    return fitting(change("state.json", edit))


def tensors_of(path, edit):
    def apply(folder):
        save_file({n: t.contiguous() for n, t in edit(load_file(folder / path)).items()}, folder / path)

    return apply


def text_of(name, old, new):
    def apply(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return apply


def without(key):
    return lambda value: {k: v for k, v in value.items() if k != key}


def nobody(facts):
    return {**facts, "owners": {"departments": {}, "client_starts": {}}}


def first_nan(tensors):
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    return tensors


HR = "adapters/hr/adapter_model.safetensors"
EXPORT = "client_exports/hr/round_1_client_0/adapter_model.safetensors"
DEPTS, CLIENTS = "dept_lora_federated.json", "client_lora_federated.json"
TORN = ["{run}", "got 2 incomplete ones", "round_1"]


def rounds(value):
    return lambda _: {"rounds": value}


BOTH = {  # whatever reads the run's config
    "no config": (gone("config.yaml"), ["{run}", "no config.yaml"]),
    "config a folder": (all_of(gone("config.yaml"), put({"config.yaml/": ""})), ["{run}", "no config.yaml"]),
    "config a FIFO": (fifo("config.yaml"), ["{run}", "no config.yaml"]),
    "config empty": (put({"config.yaml": ""}), ["{run}/config.yaml", "expected at least one key"]),
    "config broken": (put({"config.yaml": "seed: [\n"}), ["{run}/config.yaml:", "not valid YAML"]),
    "config binary": (put({"config.yaml": b"\xff\xfe"}), ["{run}/config.yaml", "not UTF-8"]),
    "config with an unknown key": (text_of("config.yaml", "seed:", "sead:"), ["{run}/config.yaml:1", "'seed'"]),
    "config with a bad value": (text_of("config.yaml", "  r: 8", "  r: -8"), ["{run}/config.yaml:", "lora.r", "-8"]),
    "config with a missing model": (
        text_of("config.yaml", "micro_base", "no/such/folder"),
        ["model.name_or_path", "no/such/folder"],
    ),
    "config with missing data": (text_of("config.yaml", "/data", "/dota"), ["data.root", "/dota"]),
    "lock a folder": (all_of(gone(".lock"), put({".lock/": ""})), ["{run}/.lock", "cannot be written"]),
    "lock a link": (link(".lock", "metrics.csv"), ["{run}/.lock", "cannot be written"]),
    "lock a FIFO": (fifo(".lock"), ["{run}/.lock", "cannot be written"]),
}
RESUMES = {
    "other rank": ("--lora-r 4", None, ["lora.r: expected 8, with which the run started, got 4", "start a new run"]),
    "other rate": (
        "--learning-rate 1e-3",
        None,
        ["training.learning_rate: expected 0.005, with which the run started, got 0.001"],
    ),
    "other seed": ("--seed 5", None, ["seed: expected 1234, with which the run started, got 5"]),
    "other momentum": ("--federation.flora.momentum=0.5", None, ["federation.flora.momentum: expected 0.1"]),
    "other share": ("--federation.share=a", None, ["federation.share: expected 'all'"]),
    "other targets": ("--target-modules q_proj", None, ["lora.target_modules"]),
    "other config": (
        "",
        text_of("config.yaml", "  r: 8", "  r: 4"),
        ["lora.r: expected 8, with which the run started, got 4"],
    ),
    "unknown flag": ("--ronds 3", None, ["--ronds", "did you mean"]),
    "other data": ("--data {tmp}/run/data", client(), ["data.root", "departments"]),
    "record added": (
        "",
        put({"../data/hr/client_0/train.jsonl": GOOD * 4}),
        ["data.root: hr/client_0", "got other records"],
    ),
    "record broken": ("", put({"../data/hr/client_0/eval.jsonl": "{"}), ["{tmp}/data/hr/client_0/eval.jsonl:1"]),
    "client gone": (
        "",
        gone("../data/hr"),
        ["data.root", "got ['finance']", "expected the departments ['finance', 'hr']"],
    ),
    "no checkpoints": ("", gone("checkpoints"), ["{run}", "no checkpoint to resume from"]),
    "no whole checkpoint": ("", checkpoints_(gone("state.json")), [*TORN, "state.json: missing"]),
    "tensors cut off": ("", checkpoints_(cut("state.safetensors", 500)), [*TORN, "state.safetensors"]),
    "tensors gone": ("", checkpoints_(gone("state.safetensors")), [*TORN, "state.safetensors: missing"]),
    "tensors cut off, manifest fits": ("", fitting(cut("state.safetensors", 500)), [*TORN, "not readable"]),
    "tensors a pickle": ("", fitting(put({"state.safetensors": pickle.dumps(print)})), [*TORN, "not readable"]),
    "tensors a link": (
        "",
        checkpoints_(lambda f: (f / "state.safetensors").rename(f / "x"), link("state.safetensors", "x")),
        [*TORN, "a link"],
    ),
    "no tensors": ("", fitting(tensors_of("state.safetensors", lambda _: {"a": torch.zeros(1)})), TORN),
    "other shapes": (
        "",
        fitting(tensors_of("state.safetensors", lambda t: {n: x[:, :1] for n, x in t.items()})),
        ["{run}"],
    ),
    "other shapes of a department": (
        "",
        fitting(tensors_of("state.safetensors", lambda t: {n: x[:1] if n[0] == "d" else x for n, x in t.items()})),
        TORN,
    ),
    "NaN in the start": ("", fitting(tensors_of("state.safetensors", first_nan)), [*TORN, "not finite"]),
    "NaN in a department": (
        "",
        fitting(
            tensors_of("state.safetensors", lambda t: {n: x * float("nan") if n[0] == "d" else x for n, x in t.items()})
        ),
        [*TORN, "not finite"],
    ),
    "no manifest": ("", checkpoints_(gone("manifest.json")), [*TORN, "manifest.json"]),
    "manifest garbage": ("", checkpoints_(put({"manifest.json": b"\xff\x00"})), [*TORN, "manifest.json"]),
    "manifest cut off": ("", checkpoints_(cut("manifest.json", 20)), [*TORN, "manifest.json", "not valid JSON"]),
    "manifest nested": ("", checkpoints_(put({"manifest.json": "[" * 200_000})), [*TORN, "manifest.json", "deep"]),
    "manifest a FIFO": ("", checkpoints_(fifo("manifest.json")), [*TORN, "manifest.json", "regular file"]),
    "manifest a list": ("", checkpoints_(put({"manifest.json": "[]"})), [*TORN, "manifest.json", "got list"]),
    "manifest empty": ("", checkpoints_(put({"manifest.json": "{}"})), [*TORN, "manifest.json", "state.json"]),
    "manifest of other values": ("", checkpoints_(put({"manifest.json": '{"state.json": 5}'})), [*TORN, "state.json"]),
    "manifest leads out": ("", checkpoints_(put({"manifest.json": '{"../x": {}}'})), [*TORN, "'..'"]),
    "manifest leads away": ("", checkpoints_(put({"manifest.json": '{"/etc/passwd": {}}'})), [*TORN, "''"]),
    "state a list": ("", state(lambda _: []), [*TORN, "state.json"]),
    "state null": ("", state(lambda _: None), [*TORN, "state.json"]),
    "state empty": ("", state(lambda _: {}), [*TORN, "state.json"]),
    "state cut off": ("", fitting(cut("state.json", 100)), [*TORN, "state.json", "not valid JSON"]),
    "round a text": ("", state(lambda s: {**s, "round": "one"}), [*TORN, "round"]),
    "round negative": ("", state(lambda s: {**s, "round": -1}), [*TORN, "round"]),
    "examples a list": ("", state(lambda s: {**s, "examples": [1]}), [*TORN, "examples"]),
    "examples a text": ("", state(lambda s: {**s, "examples": {"hr/client_0": "4"}}), [*TORN, "examples"]),
    "clusters a list": ("", state(lambda s: {**s, "cluster_assignments": [0]}), [*TORN, "cluster_assignments"]),
    "owners a list": ("", state(lambda s: {**s, "owners": []}), TORN),
    "owner of no tensors": (
        "",
        state(lambda s: {**s, "owners": {"departments": {"hr": 9}, "client_starts": {}}}),
        TORN,
    ),
    "no departments": ("", state(nobody), [*TORN, "departments"]),
    "personal leads out": ("", state(lambda s: {**s, "personal": ["../../x"]}), TORN),
    "personal a link out": ("", state(lambda s: {**s, "personal": ["hr/.."]}), [*TORN, "personal/hr/"]),
    "extra a list": ("", state(lambda s: {**s, "extra": []}), ["{run}"]),
    "no extra": ("", state(without("extra")), TORN),
    "identity a list": ("", state(lambda s: {**s, "extra": {**s["extra"], "identity": []}}), ["{run}", "identity"]),
    "history a number": ("", state(lambda s: {**s, "extra": {**s["extra"], "history": 5}}), ["{run}", "history"]),
    "history of texts": ("", state(lambda s: {**s, "extra": {**s["extra"], "history": ["a"]}}), ["{run}", "history"]),
    "callbacks a list": ("", state(lambda s: {**s, "extra": {**s["extra"], "callbacks": []}}), ["{run}", "callbacks"]),
}
EVALUATIONS = {
    "adapter gone": (gone(HR), ["{run}/" + HR, "got no file"]),
    "adapter folder gone": (gone("adapters/hr"), ["{run}/" + HR, "got no file"]),
    "adapter cut off": (cut(HR, 100), ["{run}/" + HR, "not readable"]),
    "adapter empty": (put({HR: b""}), ["{run}/" + HR, "not readable"]),
    "adapter a pickle": (put({HR: pickle.dumps(print)}), ["{run}/" + HR, "not readable"]),
    "adapter a folder": (all_of(gone(HR), put({HR + "/": ""})), ["{run}/" + HR, "got no file"]),
    "adapter a FIFO": (fifo(HR), ["{run}/" + HR, "got no file"]),
    "adapter a link": (link(HR, "../finance/adapter_model.safetensors"), ["{run}/" + HR, "a link"]),
    "adapter folder a link out": (all_of(gone("adapters/hr"), link("adapters/hr", "/etc")), ["adapters/hr", "out of"]),
    "adapter folder a link to itself": (all_of(gone("adapters/hr"), link("adapters/hr", "hr")), ["adapters/hr"]),
    "adapter of other shapes": (tensors_of(HR, lambda t: {n: x[:1, :1] for n, x in t.items()}), [HR, "got (1, 1)"]),
    "adapter of other names": (tensors_of(HR, lambda t: {"x" + n: x for n, x in t.items()}), [HR, "missing"]),
    "adapter of whole numbers": (tensors_of(HR, lambda t: {n: x.int() for n, x in t.items()}), [HR, "got I32"]),
    "NaN in an adapter": (tensors_of(HR, first_nan), ["{run}/" + HR, "not finite"]),
    "client adapter cut off": (cut(EXPORT, 100), ["{run}/" + EXPORT, "not readable"]),
    "NaN in a client's adapter": (tensors_of(EXPORT, first_nan), ["{run}/" + EXPORT, "not finite"]),
    "no index": (gone(DEPTS), ["{run}/" + DEPTS, "cannot be read"]),
    "index no JSON": (put({DEPTS: "{"}), ["{run}/" + DEPTS, "not valid JSON"]),
    "index a list": (put({DEPTS: '["hr", "finance"]'}), ["{run}/" + DEPTS, "list"]),
    "index a number": (put({DEPTS: "5"}), ["{run}/" + DEPTS]),
    "index null": (put({DEPTS: "null"}), ["{run}/" + DEPTS]),
    "index nested": (put({DEPTS: "[" * 200_000}), ["{run}/" + DEPTS, "deep"]),
    "index without a department": (change(DEPTS, without("hr")), ["{run}", "hr", DEPTS]),
    "index of numbers": (change(DEPTS, lambda p: {**p, "hr": 5}), ["{run}/" + DEPTS, "hr"]),
    "index leads out": (
        change(DEPTS, lambda p: {**p, "hr": "../../x"}),
        ["{run}", "'../../x'", "out of the run folder"],
    ),
    "index leads away": (change(DEPTS, lambda p: {**p, "hr": "/etc"}), ["{run}", "'/etc'", "out of the run folder"]),
    "index with a NUL": (change(DEPTS, lambda p: {**p, "hr": "adapters\0"}), ["{run}/" + DEPTS, "hr"]),
    "index of too long a name": (change(DEPTS, lambda p: {**p, "hr": "a" * 300}), ["{run}", "aaa"]),
    "no client index": (gone(CLIENTS), ["{run}/" + CLIENTS, "cannot be read"]),
    "client index no JSON": (put({CLIENTS: ""}), ["{run}/" + CLIENTS, "not valid JSON"]),
    "client index a list": (put({CLIENTS: "[]"}), ["{run}/" + CLIENTS]),
    "client index without rounds": (put({CLIENTS: "{}"}), ["{run}/" + CLIENTS, "rounds"]),
    "client index of lists": (change(CLIENTS, rounds([])), ["{run}/" + CLIENTS]),
    "client index of one list": (change(CLIENTS, rounds({"1": []})), ["{run}/" + CLIENTS]),
    "client index of names": (change(CLIENTS, rounds({"1": {"hr": ["client_0"]}})), ["{run}/" + CLIENTS]),
    "client index of numbers": (change(CLIENTS, rounds({"1": {"hr": {"client_0": 5}}})), ["{run}/" + CLIENTS]),
    "client index of strangers": (change(CLIENTS, rounds({"1": {"hr": {"x": "adapters/hr"}}})), ["{run}", "hr/x"]),
    "client index leads out": (
        change(CLIENTS, rounds({"1": {"hr": {"client_0": "../../x"}}})),
        ["{run}", "'../../x'", "out of the run folder"],
    ),
    "config of another rank": (
        text_of("config.yaml", "  r: 8", "  r: 4"),
        ["{run}/adapters/", "got (8,", "expected shape (4,"],
    ),
}
RESUME = "fit --resume {run} --output {tmp}/out --rounds 2"
RUNS = {
    **{f"resume, {case}": (f"{RESUME} {a}", b, w) for case, (a, b, w) in RESUMES.items()},
    **{f"resume, {case}": (RESUME, b, w) for case, (b, w) in BOTH.items()},
    **{f"evaluate, {case}": ("evaluate --run {run}", b, w) for case, (b, w) in {**BOTH, **EVALUATIONS}.items()},
}


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run and its data, which the test may spoil."""
    shutil.copytree(finished / "data", tmp_path / "data")
    run = shutil.copytree(finished / "logs" / "version_0", tmp_path / "run")
    text_of("config.yaml", str(finished / "data"), str(tmp_path / "data"))(run)
    return run


@pytest.mark.parametrize("case", RUNS)
def test_bad_run_folder(case, copied, tmp_path, capfd):
    arguments, spoil, words = RUNS[case]
    if spoil is not None:
        spoil(copied)
    argv = [word.format(run=copied, tmp=tmp_path) for word in arguments.split()]
    check(argv, [word.format(run=copied, tmp=tmp_path) for word in words], tmp_path, capfd)


@pytest.mark.parametrize("command", [RESUME, "evaluate --run {run}"])
def test_run_folder_that_another_process_holds(command, copied, tmp_path, capfd):
    with locked(copied):
        argv = command.format(run=copied, tmp=tmp_path).split()
        check(argv, [str(copied), "another process", str(os.getpid()), "wait for it"], tmp_path, capfd)


UNREADABLE = {
    "config": ("fit --config {tmp}/bad.yaml", "bad.yaml", "seed: 1\n"),
    "client": ("fit --data {tmp}/data", "data/hr/client_0.jsonl", GOOD),
    "data folder": ("fit --data {tmp}/data", "data/", ""),
    "department": ("fit --data {tmp}/data", "data/hr/", ""),
    "department that may be listed but not entered": ("fit --data {tmp}/data", "data/hr/client_0.jsonl", GOOD),
    "model config": ("fit --model.name_or_path={tmp}/model", "model/config.json", "{}"),
    "output": ("fit --output {tmp}/logs", "logs/", ""),
}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_may_not_be_read_or_written(case, tmp_path, capfd):
    arguments, name, content = UNREADABLE[case]
    put({name: content})(tmp_path)
    place = (tmp_path / name).parent if "listed" in case else tmp_path / name
    place.chmod(0o400 if "listed" in case else 0o000)
    argv, words = fill(arguments, ["{tmp}/" + name.rstrip("/").split("/")[0]], tmp_path)
    before = sorted(tmp_path.iterdir())
    try:
        assert main(argv) == 2
    finally:
        place.chmod(0o755)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words[0] in last
    assert sorted(tmp_path.iterdir()) == before
