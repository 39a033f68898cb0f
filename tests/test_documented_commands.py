"""Every command that README and docs show: run where it is small enough to run here, else read as the command reads it.

`partition`, `inspect`, `init`, `doctor`, `runs` and `completion` are run by tests of their own (`tests/commands`), and
what needs several machines by `tests/network`.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from forked import Forked
from signed_runs import sign_as_sites

from fl_lightning.cli import main
from fl_lightning.commands import COMMANDS
from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.launch import reserve_port
from fl_lightning.network.site.levels import write_levels
from fl_lightning.provenance.certificate import write_certificate
from fl_lightning.provenance.signing import new_key
from fl_lightning.runs.fit import fit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
START = re.compile(r"(?:python -m fl_lightning|fl-lightning) (?=[a-z])")


def shown():
    """Every command in a page, without its comment, once: {as it is shown: its words}."""
    found = {}
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines):
            for start in START.finditer(line):
                text = line[start.end() :]
                if text.count("'") % 2:  # the quotation ends on the next line
                    text += " " + lines[number + 1]
                if "`" in line[: start.start()]:
                    text = text.partition("`")[0]
                words = shlex.split(text.partition(" #")[0].replace(')"', ""))
                if words[0] in COMMANDS:
                    found.setdefault(" ".join(words), words)
    return found


SHOWN = shown()


def of(*names):
    """The commands of these names, in one worker; those of several processes run where other tests fork processes."""
    documented, forked = (pytest.mark.xdist_group(name) for name in ("documented", "forked"))
    return [
        pytest.param(words, id=command[:70], marks=forked if "--fabric.devices" in words else documented)
        for command, words in SHOWN.items()
        if words[0] in names
    ]


def test_every_command_is_shown():
    assert {words[0] for words in SHOWN.values()} == set(COMMANDS)


@pytest.fixture(scope="module")
def little(cut_departments, tmp_path_factory):
    """Four departments of four clients, two training records and one to evaluate each."""
    return cut_departments(tmp_path_factory.mktemp("departments"), 4, 2, 1)


@pytest.fixture(scope="module")
def finished(little, micro_base, tmp_path_factory):
    """A folder with one finished run in lightning_logs."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["--rounds", "1", "--max-records", "2", "--clients-per-dept", "2", "--model.name_or_path", micro_base]
    run = fit(parse_config([*small, "--data", str(little), "--output", str(folder / "lightning_logs")]))
    levels = {"own": "adapters/hr", "department": "adapters/finance"}  # as if it were personalized
    choice = {"chosen": "own", "weights": {"own": 0.5, "department": 0.5}, "adapters": levels}
    (run / "personal_eval.json").write_text(json.dumps({"choose": "mixture", "clients": {"hr/client_0": choice}}))
    return folder


@pytest.fixture(scope="module")
def signed(little, micro_base, tmp_path_factory):
    """A folder with a key, one run in lightning_logs that is signed with it and has a certificate."""
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'fl_lightning[sign]'")
    folder = tmp_path_factory.mktemp("signed")
    new_key(folder / "operator.key")
    small = ["--rounds", "1", "--max-records", "2", "--clients-per-dept", "2", "--model.name_or_path", micro_base]
    small += ["--logging.samples", "0", "--sign-key", str(folder / "operator.key")]
    run = fit(parse_config([*small, "--data", str(little), "--output", str(folder / "lightning_logs")]))
    write_certificate(run, run, taken_out={"clients": ["hr/client_3"]}, first_round=1, sign_key=folder / "operator.key")
    return folder


def at_home(words):
    """Configs are where the repository is, whatever the folder."""
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("words", of("fit", "compare"))
def test_what_trains_is_run_with_little(words, little, finished, micro_base, monkeypatch, request):
    monkeypatch.chdir(request.getfixturevalue("signed") if "operator.key" in words else finished)
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        return
    if words == ["compare"] or "my_data" in words or "…" in " ".join(words):
        pytest.skip("the page shows a name, or data of the reader's own")
    if "--resume" in words:
        assert main(words) == 0
        return
    if words[0] == "compare":
        place = words.index("--seeds")
        words = [*words[:place], *words[place + 2 :], "--seeds", "1"]
    clients = "4" if "hierarchy" in str(words) else "3"
    small = ["--rounds", "1", "--max-records", "2", "--clients-per-dept", clients, "--output", "elsewhere"]
    small += ["--logging.samples", "0", "--model.name_or_path", micro_base]
    argv = [*at_home(words), *small, "--data", str(little)]
    if "--fabric.devices" not in words:
        assert main(argv) == 0
        return
    status, output = Forked(f"import sys, forked_rank; sys.exit(forked_rank.run({argv!r}))", finished).finish()
    assert status == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("words", of("evaluate", "report", "merge", "audit"))
def test_what_looks_at_a_run_is_run(words, little, finished, monkeypatch):
    monkeypatch.chdir(finished)
    here = {"OTHER_DEPARTMENTS": str(little), "mine=PATH/TO/ADAPTER": "mine=lightning_logs/version_0/adapters/hr"}
    assert main([here.get(word, word) for word in words]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", of("personalize"))
def test_what_chooses_is_run(words, little, micro_base, tmp_path, monkeypatch):
    small = ["--rounds", "1", "--clients-per-dept", "1", "--data.selection_fraction", "1", "--logging.samples", "0"]
    small += ["--model.name_or_path", micro_base]
    config = parse_config([*small, "--data", str(little), "--output", str(tmp_path / "lightning_logs")])
    run_folder = fit(config)
    site = next((Path(word) for word in words if "<run>" in word), None)
    if site is not None:  # as the command client leaves it
        state = newest_checkpoint(run_folder)[0]
        write_levels(tmp_path / site, config, "hr/client_0", {"department": state.adapter("hr")}, 1)
    for client in little.glob("*/client_1"):
        shutil.copytree(client, tmp_path / "NEWCOMERS" / client.parent.name / client.name)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", of("forget"))
def test_what_is_forgotten_is_gone(words, finished, little, tmp_path, monkeypatch):
    if "OLD" in words:
        pytest.skip("the page shows a name")
    shutil.copytree(finished / "lightning_logs" / "version_0", tmp_path / "lightning_logs" / "version_0")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert (tmp_path / "lightning_logs" / "version_1").exists() == ("--dry-run" not in words)


@pytest.mark.slow
@pytest.mark.parametrize("words", of("push"))
def test_what_is_pushed_is_shown(words, finished, monkeypatch):
    monkeypatch.chdir(finished)
    if "…" in " ".join(words):
        pytest.skip("the page shows a name")
    assert main([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0


@pytest.mark.parametrize("words", of("certs"))
def test_keys_are_made(words, tmp_path, monkeypatch):
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'fl_lightning[flower]'")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    made = Path(words[words.index("--sign-key") + 1]) if "--sign-key" in words else Path("certs", "ca.pem")
    assert made.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("words", of("verify"))
def test_what_verifies_is_run(words, signed, tmp_path, monkeypatch):
    monkeypatch.chdir(signed)
    if "--site-keys" in words:
        run = shutil.copytree(signed / "lightning_logs" / "version_0", tmp_path / "lightning_logs" / "version_0")
        shutil.rmtree(run / "certificate")
        sign_as_sites(run, tmp_path / words[-1])
        monkeypatch.chdir(tmp_path)
    if "--write-salt" in words:
        Path(words[-1]).unlink(missing_ok=True)
    if "--salt" in words and not Path(words[-1]).exists():
        main(["verify", "--run", "last", "--client", "hr/client_1", "--write-salt", words[-1]])
    assert main(words) == 0


@pytest.mark.parametrize("words", of("server", "client"))
def test_what_needs_several_machines_is_read(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run.yaml", "laptop.yaml"):
        Path(name).write_text("seed: 1\n")
    rest = [word.replace("/etc/fl/", "") for word in at_home(words[1:])]
    parser = Parser(words[0], add_help=False)
    for flag in ("--department", "--client", "--resume"):
        parser.add_argument(flag)
    parse_config(parser.read_known(rest)[1])


@pytest.mark.slow
@pytest.mark.parametrize("words", of("chat"))
def test_what_talks_is_talked_to(words, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main([*words, "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", of("serve"))
def test_what_serves_is_started_up_to_the_model(words, finished, monkeypatch):
    pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")
    from fl_lightning.serving import app

    monkeypatch.chdir(finished)
    for name in ("api.key", "cert.pem", "key.pem"):
        Path(name).write_text("0123456789abcdef")
        Path(name).chmod(0o600)
    started = []
    monkeypatch.setattr(app, "_until_stopped", lambda served, run: started.append(served))
    holder, port = reserve_port()
    with contextlib.closing(holder):
        assert main([*words, "--port", str(port)]) == 0
    assert len(started) == 1
