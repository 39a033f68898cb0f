import os
import socket

import pytest

from fl_lightning.commands import serve as commands
from fl_lightning.commands.serve import KEY, api_key
from fl_lightning.errors import InputError
from fl_lightning.launch import reserve_port

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def serve(command, adapter_run, monkeypatch):
    """Run `serve` up to where it would listen: what it would have been started with comes back with the rest."""
    pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")
    from fl_lightning.serving import app

    monkeypatch.delenv(KEY, raising=False)
    started = []

    def start(config, options):
        options.check()
        started.append((config, options))

    monkeypatch.setattr(app, "serve", start)

    def call(*options, run=True):
        given = ("--run", adapter_run) if run else ()
        return (*command("serve", *given, *options), started.pop() if started else None)

    return call


def test_what_is_left_out_is_as_the_help_says(serve, adapter_run, monkeypatch):
    from fl_lightning.serving.app import ServingOptions

    monkeypatch.setattr(ServingOptions, "check", lambda self: None)  # port 8000 may be taken here
    code, _, err, (config, options) = serve()
    assert (code, err) == (0, "")
    assert config.model.name_or_path == "bundled:tiny_base"
    assert options == ServingOptions(adapter_run, models=[])
    assert (options.host, options.port, options.max_batch, options.max_requests) == ("127.0.0.1", 8000, 32, 256)
    assert (options.max_body, options.watch_seconds, options.clients, list(options.models)) == (2**20, 2, True, [])
    limits = options.limits
    assert (limits.prompt_tokens, limits.new_tokens, limits.seconds, limits.context) == (2048, 256, 300, None)
    for number in (8000, 32, 256, 2048, 1024, 300, 2):
        assert f"({number})" in commands._parser().format_help()


def test_every_option_arrives(serve, key_file, tmp_path):
    pem = tmp_path / "x.pem"
    pem.write_text("x")
    holder, port = reserve_port()
    code, _, err, (_, options) = serve(
        "--host", "0.0.0.0", f"--port={port}", "--api-key-file", key_file, "--models", "hr", "base",
        "--no-clients", "--max-batch", 3, "--max-requests", 4, "--max-prompt-tokens", 5, "--max-new-tokens", 6,
        "--max-body-kib", 7, "--timeout", 8, "--watch", 9, "--tls-certificate", pem, "--tls-key", pem,
    )  # fmt: skip
    holder.close()
    assert (code, err) == (0, "")
    assert (options.host, options.port, options.api_key) == ("0.0.0.0", port, SECRET)
    assert (options.models, options.clients, options.max_batch, options.max_requests) == (["hr", "base"], False, 3, 4)
    limits = options.limits
    assert (limits.prompt_tokens, limits.new_tokens, options.max_body, limits.seconds) == (5, 6, 7168, 8)
    assert (options.watch_seconds, options.certificate, options.key) == (9, pem, pem)
    assert SECRET not in repr(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prot", "1"), "unknown argument --prot; did you mean '--port'?"),
        (("hr",), "unknown argument hr"),
        (("--port", "80"), "--port: expected 1024 to 65535, got 80"),
        (("--port", "70000"), "--port: expected 1024 to 65535, got 70000"),
        (("--port", "0"), "--port: expected an integer of at least 1, got '0'"),
        (("--port", "x"), "--port: expected an integer of at least 1, got 'x'"),
        (("--port", "9" * 5000), "--port: expected an integer of at least 1, got '999"),
        (("--port",), "--port: expected a value, got none"),
        (("--max-batch", "0"), "--max-batch: expected an integer of at least 1, got '0'"),
        (("--max-requests", "-1"), "--max-requests: expected an integer of at least 1, got '-1'"),
        (("--max-prompt-tokens", "1.5"), "--max-prompt-tokens: expected an integer of at least 1, got '1.5'"),
        (("--max-new-tokens", ""), "--max-new-tokens: expected an integer of at least 1, got ''"),
        (("--max-body-kib", "many"), "--max-body-kib: expected an integer of at least 1, got 'many'"),
        (("--timeout", "0"), "--timeout: expected an integer of at least 1, got '0'"),
        (("--timeout", "9" * 400), "--timeout: expected an integer of at least 1, got '999"),
        (("--watch", "9" * 400), "--watch: expected an integer of at least 1, got '999"),
        (("--host", "example.org"), "--host: expected one of 127.0.0.1, 0.0.0.0, ::, got 'example.org'"),
        (("--host", "localhost"), "--host: expected one of 127.0.0.1, 0.0.0.0, ::, got 'localhost'"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0: reachable from other machines; expected an API key"),
        (("--host", "::"), "--host ::: reachable from other machines; expected an API key"),
        (("--models",), "--models: expected one value or more, got none"),
        (("--tls-key", "x"), "--tls-certificate and --tls-key: expected both or neither, got one of them"),
        (("--tls-key", "no.pem", "--tls-certificate", "no.pem"), "no.pem: no such file, expected a PEM file"),
        (("--api-key-file", "/no/such/file"), "--api-key-file /no/such/file: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line(serve, options, said):
    code, out, err, started = serve(*options)
    assert (code, out, started) == (2, "", None)
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_a_run_has_to_be_named_and_to_be_there(serve):
    assert serve(run=False)[2] == (
        "error: expected a value for --run ('fl-lightning serve --help' lists the options)\n"
    )
    code, _, err, _ = serve("--run", "nowhere", run=False)
    assert code == 2
    assert err.startswith("error: run 'nowhere': no config.yaml in it")


def test_a_port_that_is_taken_is_said(serve):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err, started = serve("--port", port)
    assert (code, started) == (2, None)
    assert err.startswith(f"error: --port {port}: cannot listen there (")
    assert err.endswith("choose another --port\n")


@pytest.mark.parametrize("missing", ["litserve", "prometheus_client"])
def test_a_missing_extra_is_said(command, adapter_run, monkeypatch, missing):
    def find(name):
        return None if name == missing else object()

    monkeypatch.setattr(commands.importlib.util, "find_spec", find)
    wanted = f"error: serve needs {missing}, which is not installed: pip install 'fl_lightning[serve]'\n"
    assert command("serve", "--run", adapter_run) == (2, "", wanted)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        commands.run(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in (
        "--run",
        "--api-key-file",
        "--models",
        "--no-clients",
        "--max-body-kib",
        "--watch",
        "--tls-key",
        KEY,
    ):
        assert option in out


def test_without_a_key_there_is_none(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    assert api_key(None) == ""
    monkeypatch.setenv(KEY, "")
    assert api_key(None) == ""


def test_a_key_of_the_environment_is_taken_out_of_it(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    assert api_key(None) == SECRET
    assert KEY not in os.environ


def test_a_key_of_a_file_goes_before_that_of_the_environment(monkeypatch, key_file):
    monkeypatch.setenv(KEY, "another-key-than-that-one")
    assert api_key(str(key_file)) == SECRET
    assert KEY not in os.environ


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_key_that_others_may_read_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(InputError, match=rf"others may read it; .*, got {mode:04o}; run 'chmod 600 {key_file}'"):
        api_key(str(key_file))


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 15, "twenty one with spaces", "schlüssel-mit-umlauten", "a" * 20 + "\x07"]
)
def test_what_is_no_key_is_refused_without_being_shown(key_file, monkeypatch, key):
    key_file.write_text(key)
    with pytest.raises(InputError, match=f"expected a key of at least 16 .*got {len(key)} characters") as caught:
        api_key(str(key_file))
    assert not key or key not in str(caught.value)
    if key:
        monkeypatch.setenv(KEY, key)
        with pytest.raises(InputError, match=f"^{KEY}: expected a key .*got {len(key)} characters"):
            api_key(None)


@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes"])
def test_what_is_no_file_with_a_key_is_refused(tmp_path, kind):
    path = tmp_path / "key"
    if kind == "folder":
        path.mkdir(mode=0o700)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(b"\xff" * 32)
        path.chmod(0o600)
    with pytest.raises(InputError, match="cannot be read|not UTF-8"):
        api_key(str(path))
