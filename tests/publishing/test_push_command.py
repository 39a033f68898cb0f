import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard, constants
from stub_hub import DROP, LOSE, TOKEN

from fl_lightning.cli import main
from fl_lightning.publishing.export_folder import ADAPTER_FILES

ONE = ["--models", "hr"]
COMMIT = "POST /api/models/acme/bots-hr/commit"


def push(run, *more):
    return main(["push", "--run", str(run), "--repo-prefix", "acme/bots", *more])


def local(run, name):
    folder = run / "publish" / name
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def last_line(capsys):
    """Of what the command says of itself; what it did stands before, in the log."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(("error:", "failed:", "stopped;"))] == lines[-1:]
    return lines[-1]


def test_departments_and_groups_arrive_byte_for_byte_in_private(make_run, hub, capsys):
    run = make_run()
    assert push(run) == 0
    assert set(hub.repositories) == {"acme/bots-hr", "acme/bots-finance", "acme/bots-office"}
    for name, repository in hub.repositories.items():
        files = local(run, name.removeprefix("acme/"))
        assert sorted(files) == sorted(ADAPTER_FILES)
        assert repository.files == {".gitattributes": b"*.safetensors filter=lfs\n", **files}
        assert repository.private
        assert repository.commits == [f"Round 2 of {name.removeprefix('acme/bots-')}"]
    adapter = (run / "adapters/hr/adapter_model.safetensors").read_bytes()
    assert hub.repositories["acme/bots-hr"].files["adapter_model.safetensors"] == adapter
    assert len(hub.stored) == 3  # the adapters went through LFS
    assert f"KiB uploaded, {hub.url}/acme/bots-hr\n" in capsys.readouterr().out


def test_clients_adapter_goes_only_where_it_is_named(make_run, hub):
    run = make_run()
    assert push(run, "--models", "hr/client_0", "--public") == 0
    assert list(hub.repositories) == ["acme/bots-hr-client_0"]
    assert not hub.repositories["acme/bots-hr-client_0"].private
    assert sorted(local(run, "bots-hr-client_0")) == sorted(ADAPTER_FILES)  # what else lies beside it stays


@pytest.mark.parametrize("xet", [False, True], ids=["one commit", "the client's pipeline"])
def test_second_call_makes_no_commit(make_run, hub, capsys, monkeypatch, xet):
    run = make_run()
    if xet:
        pytest.importorskip("hf_xet", reason="hf_xet is not installed")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        hub.lfs = False  # the pipeline without the storage service of xet
    assert push(run, *ONE) == 0
    assert hub.repositories["acme/bots-hr"].files["README.md"] == local(run, "bots-hr")["README.md"]
    capsys.readouterr()
    assert push(run, *ONE) == 0
    assert len(hub.repositories["acme/bots-hr"].commits) == 1
    assert "acme/bots-hr: unchanged" in capsys.readouterr().out


def test_other_files_of_the_repository_stay(make_run, hub):
    run = make_run()
    assert push(run, *ONE) == 0
    files = hub.repositories["acme/bots-hr"].files
    files["notes.txt"], files["README.md"] = b"by hand", b"older"
    assert push(run, *ONE) == 0
    assert files["notes.txt"] == b"by hand"
    assert files["README.md"] != b"older"


@pytest.mark.parametrize("merged_first", [True, False])
def test_adapter_and_merged_model_do_not_come_together(make_run, hub, capsys, merged_first):
    run = make_run()
    first, second = (["--merged"], []) if merged_first else ([], ["--merged"])
    assert push(run, *ONE, *first) == 0
    before = dict(hub.repositories["acme/bots-hr"].files)
    assert push(run, *ONE, *second) == 2
    what = "a merged model" if merged_first else "an adapter"
    assert f"got {what} in it, and both together would be loaded wrongly" in last_line(capsys)
    assert hub.repositories["acme/bots-hr"].files == before
    assert ("config.json" in local(run, "bots-hr")) == (not merged_first)  # the folder is the second's


@pytest.mark.parametrize(
    ("pattern", "faults"),
    [
        ("PUT /storage/", [DROP]),
        ("PUT /storage/", [(500, {}, {}), DROP]),
        ("POST /api/repos/create", [(503, {}, {})]),
        ("POST /api/repos/create", [DROP, (502, {}, {})]),
        ("GET /api/models/acme/bots-hr", [(504, {}, {})]),
        ("POST /api/validate-yaml", [(503, {"Content-Type": "text/html"}, b"<p>busy</p>")]),
        ("POST /.*/preupload/", [(500, {}, {})]),
        ("POST /.*/objects/batch", [DROP]),
        (COMMIT, [(503, {}, {}), (409, {}, {"error": "somebody else commits"})]),
        (COMMIT, [LOSE]),
    ],
)
def test_what_breaks_in_passing_is_tried_again(make_run, hub, log_messages, pattern, faults):
    run = make_run()
    hub.breaks(pattern, *faults)
    assert push(run, *ONE) == 0
    assert hub.faults == []
    repository = hub.repositories["acme/bots-hr"]
    assert {name: repository.files[name] for name in ADAPTER_FILES} == local(run, "bots-hr")
    assert len(repository.commits) == 1
    assert hub.waits
    assert sorted(hub.waits) == hub.waits


def test_waits_grow_and_end(make_run, hub, capsys):
    hub.breaks(COMMIT, *[(503, {}, {})] * 6)
    assert push(make_run(), *ONE) == 1
    assert hub.waits == [2, 4, 8, 16, 32]
    assert last_line(capsys) == "failed: acme/bots-hr: the Hub answers 503, 6 times in a row"


def test_the_hub_may_say_how_long_to_wait(make_run, hub, log_messages):
    hub.breaks(COMMIT, (429, {"Retry-After": "77"}, {}), (429, {"Retry-After": "tomorrow"}, {}))
    assert push(make_run(), *ONE) == 0
    assert hub.waits == [77, 4]
    assert "WARNING acme/bots-hr: the Hub answers 429; trying again in 77 s" in log_messages


def test_wait_that_is_too_long_ends_the_command(make_run, hub, capsys):
    hub.breaks(COMMIT, (429, {"Retry-After": "3600"}, {}))
    assert push(make_run(), *ONE) == 1
    assert last_line(capsys) == "failed: acme/bots-hr: the Hub answers 429, and asks to wait 3,600 seconds"
    assert hub.waits == []


@pytest.mark.parametrize(
    ("pattern", "status", "said"),
    [
        ("POST /api/repos/create", 401, "the Hub rejects the token (401); set HF_TOKEN"),
        ("POST /api/repos/create", 403, "the token may not write to acme (403)"),
        ("POST /api/repos/create", 404, "the Hub does not know the owner (404); expected acme to be your name"),
        (COMMIT, 403, "the token may not write to acme (403)"),
        ("POST /api/validate-yaml", 400, "licence of the card is unknown"),
        (COMMIT, 422, "the Hub refuses the upload (422: too large)"),
    ],
)
def test_what_does_not_pass_is_one_line_and_not_tried_again(make_run, hub, capsys, pattern, status, said):
    errors = {"errors": [{"message": "licence of the card is unknown"}]} if status == 400 else {"error": "too large"}
    hub.breaks(pattern, *[(status, {}, errors)] * 2)
    assert push(make_run(), *ONE) == 2
    assert said in last_line(capsys)
    assert hub.waits == []
    assert hub.asked(pattern) == 1


def test_several_repositories_say_what_is_done_and_go_on_there(make_run, hub, capsys):
    run = make_run()
    hub.breaks("POST /api/models/acme/bots-hr/commit", *[(503, {}, {})] * 6)
    assert push(run) == 1
    told = capsys.readouterr()
    wanted = "done: acme/bots-finance; not done: acme/bots-hr, acme/bots-office; the same command goes on there\n"
    assert told.err.endswith(wanted)
    assert "acme/bots-finance: " in told.out
    assert "acme/bots-hr: " not in told.out
    assert push(run) == 0
    told = capsys.readouterr().out
    assert "acme/bots-finance: unchanged" in told
    assert told.count("KiB uploaded") == 2
    assert {len(repository.commits) for repository in hub.repositories.values()} == {1}


def test_public_repository_gets_nothing_that_is_to_be_private(make_run, hub, capsys, log_messages):
    run = make_run()
    assert push(run, *ONE, "--public") == 0
    before = dict(hub.repositories["acme/bots-hr"].files)
    assert push(run, *ONE, "--licence", "mit") == 2
    assert "expected a private repository, got a public one" in capsys.readouterr().err
    assert hub.repositories["acme/bots-hr"].files == before
    hub.repositories["acme/bots-hr"].private = True
    assert push(run, *ONE, "--public") == 0
    assert hub.repositories["acme/bots-hr"].private
    assert any("stays private on the Hub" in line for line in log_messages)


def test_token_is_in_the_authorization_header_and_nowhere_else(make_run, hub, capfd, log_messages):
    run = make_run()
    hub.breaks(COMMIT, (503, {}, {}))
    hub.breaks("PUT /storage/", DROP)
    assert push(run, *ONE) == 0
    for _, path, headers, body in hub.requests:
        assert headers.pop("authorization", None) == (None if "/storage/" in path else f"Bearer {TOKEN}")
        assert TOKEN not in f"{path} {headers}"
        assert TOKEN.encode() not in body
    told = capfd.readouterr()
    assert TOKEN not in told.out + told.err + "".join(log_messages)
    assert "/storage/" not in told.out + told.err + "".join(log_messages)  # its addresses are keys
    assert [p for p in run.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()] == []


def test_nothing_but_the_cards_subject_goes_over_the_wire(make_run, hub):
    run = make_run()
    assert push(run) == 0
    sent = b"".join(body for _, _, _, body in hub.requests)
    for secret in (b"Where is my parcel?", b"not for others", b"secret-data", b"of the noise"):
        assert secret not in sent


@pytest.mark.parametrize("argument", [f"--token={TOKEN}", "--token"])
def test_token_is_no_argument(make_run, hub, capsys, argument):
    assert push(make_run(), argument, TOKEN) == 2
    told = capsys.readouterr()
    assert "takes no --token" in told.err
    assert TOKEN not in told.out + told.err
    assert hub.requests == []


def test_without_a_token_nothing_is_asked(make_run, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(make_run()) == 2
    assert "expected a token for the Hub, got none; set HF_TOKEN" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--repo-prefix", "acme"],
            "expected ORG/NAME, ORG being a user or organisation of the Hub, got 'acme'",
        ),
        (
            ["--repo-prefix", "a/b/c"],
            "expected ORG/NAME, ORG being a user or organisation of the Hub, got 'a/b/c'",
        ),
        (
            ["--repo-prefix", "acme/a--b"],
            "--repo-prefix: expected an id of the Hub, got 'acme/a--b' (Cannot have --",
        ),
        (["--repo-prefix", "acme/" + "x" * 95], "repository of finance: expected an id of the Hub, got"),
        (["--models", "sales"], "has no adapter of 'sales'"),
        (["--models", "hr", "hr/client_1"], "has no adapter of 'hr/client_1'; did you mean 'hr/client_0'?"),
        (
            ["--licence", "my own"],
            "--licence: expected an identifier such as apache-2.0",
        ),
        (["--base-model", "/models/qwen"], "--base-model: expected an id of the Hub, got '/models/qwen'"),
        (["--public", "--private"], "--private: not allowed with argument --public"),
        (["--run", "nowhere"], "run 'nowhere': no config.yaml in it"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_asked(make_run, hub, capsys, arguments, said):
    assert push(make_run(), *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert hub.requests == []


def test_offline_is_refused_but_for_a_dry_run(make_run, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = make_run()
    assert push(run) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert push(run, "--dry-run") == 0
    assert hub.requests == []


def test_dry_run_writes_the_folders_and_says_what_would_go(make_run, hub, capsys):
    run = make_run()
    assert push(run, "--dry-run", "--licence", "Apache-2.0") == 0
    told = capsys.readouterr().out
    for line in ("acme/bots-hr", "4.000 → 3.000", "visibility: private", "licence: apache-2.0", "Nothing was uploaded"):
        assert line in told
    assert hub.requests == []
    assert {p.name for p in (run / "publish").iterdir()} == {"bots-finance", "bots-hr", "bots-office"}
    assert sorted(local(run, "bots-hr")) == sorted(ADAPTER_FILES)
    first = local(run, "bots-hr")
    assert push(run, "--dry-run", "--licence", "Apache-2.0") == 0
    assert local(run, "bots-hr") == first


def test_folder_with_something_else_in_it_is_not_touched(make_run, hub, tmp_path, capsys):
    (tmp_path / "bots-hr").mkdir()
    (tmp_path / "bots-hr/train.jsonl").write_text("mine")
    assert push(make_run(), *ONE, "--dry-run", "--to", str(tmp_path)) == 2
    assert "holds train.jsonl, which does not belong to a model" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "bots-hr").iterdir()] == ["train.jsonl"]


def test_merged_models_are_pushed_whole(make_run, hub):
    run = make_run()
    assert push(run, *ONE, "--merged", "--dtype", "fp32") == 0
    files = hub.repositories["acme/bots-hr"].files
    wanted = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert wanted <= set(files)
    assert not any("adapter" in name for name in files)
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == local(run, "bots-hr")
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("acme/bots-hr")' in card.text


def test_stopping_says_what_was_done(make_run, hub, capsys, monkeypatch):
    from fl_lightning.publishing import hub as uploading
    from fl_lightning.signals import Stopped

    real = uploading.upload

    def stop(api, built, **options):
        if built.source.name == "hr":
            raise Stopped(2)
        return real(api, built, **options)

    monkeypatch.setattr(uploading, "upload", stop)
    assert push(make_run()) == 130
    wanted = (
        "stopped; done: acme/bots-finance; not done: acme/bots-hr, acme/bots-office; the same command goes on there"
    )
    assert last_line(capsys) == wanted


@pytest.mark.slow
def test_process_of_its_own_pushes_by_its_environment_alone(make_run, hub, tmp_path):
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment.update(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path / "home"))
    command = [sys.executable, "-m", "fl_lightning", "push", "--run", str(make_run()), "--repo-prefix", "acme/bots"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("uploaded") == 3
    assert TOKEN not in done.stdout + done.stderr
    assert len(hub.repositories) == 3
    agents = {headers["user-agent"] for _, _, headers, _ in hub.requests}
    assert not any("torch" in agent for agent in agents)  # what telemetry would add
    assert json.loads((tmp_path / "version_0/publish/bots-hr/adapter_config.json").read_text())["r"] == 2
