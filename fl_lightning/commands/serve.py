"""``serve --run RUN``: the adapters of a run on one base model, behind OpenAI's chat API."""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path

from fl_lightning.errors import InputError, nearest
from fl_lightning.run_folder import CONFIG, find_run_folder
from fl_lightning.terminal import hush, quiet, take_all, take_flag, take_number, take_option

KEY = "FL_LIGHTNING_API_KEY"
USAGE = """usage: fl-lightning serve --run RUN [--output DIR] [--host ADDRESS] [--port N] [--api-key-file FILE]
                          [--models NAME …] [--no-clients] [--max-batch N] [--max-requests N]
                          [--max-prompt-tokens N] [--max-new-tokens N] [--max-body-kib N] [--timeout SECONDS]
                          [--watch SECONDS] [--tls-certificate FILE --tls-key FILE]

Serves POST /v1/chat/completions and GET /v1/models, with a model for every department (hr), group and client
(hr/client_0) of the run, and base; and /health and /metrics. Adapters of a new round are taken up as they land.

  --run RUN               a run folder, or 'last' under --output (default: lightning_logs)
  --host ADDRESS          127.0.0.1 (the default), 0.0.0.0 or ::; from elsewhere only with an API key
  --port N                (default: 8000)
  --api-key-file FILE     the key that clients must show; or in the environment variable FL_LIGHTNING_API_KEY
  --models NAME           serve this one; may be given several times (default: all)
  --no-clients            departments and groups only
  --max-batch N           answers under way at once (default: 32); the others wait
  --max-requests N        requests under way or waiting at once (default: 256); more get 429
  --max-prompt-tokens N   (default: 2048); more get 413
  --max-new-tokens N      of an answer (default: 256)
  --max-body-kib N        of a request (default: 1024); more get 413
  --timeout SECONDS       until an answer has to be there (default: 300)
  --watch SECONDS         between two looks for a new round (default: 2)
  --tls-certificate FILE, --tls-key FILE   for HTTPS
"""


def run(argv: list[str]) -> int:
    """Serve until stopped."""
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    texts: dict[str, str | None] = {}
    for flag in ("--run", "--output", "--host", "--api-key-file", "--tls-certificate", "--tls-key"):
        texts[flag], argv = take_option(argv, flag)
    numbers: dict[str, int | None] = {}
    for flag in (
        "--port", "--max-batch", "--max-requests", "--max-prompt-tokens", "--max-new-tokens", "--max-body-kib",
        "--timeout", "--watch",
    ):  # fmt: skip
        numbers[flag], argv = take_number(argv, flag, 1)
    models, argv = take_all(argv, "--models")
    no_clients, argv = take_flag(argv, "--no-clients")
    if argv:
        known = [word.strip(",") for line in USAGE.splitlines() for word in line.split() if word.startswith("--")]
        raise InputError(f"serve: unknown argument {argv[0]}{nearest(argv[0], known)}")
    if texts["--run"] is None:
        raise InputError("serve: no --run, wanted --run RUN with a run folder or 'last'")
    if missing := [name for name in ("litserve", "prometheus_client") if importlib.util.find_spec(name) is None]:
        raise InputError(f"serve needs {missing[0]}, which is not installed: pip install 'fl_lightning[serve]'")
    folder = find_run_folder(texts["--run"], Path(texts["--output"] or "lightning_logs"))
    key = api_key(texts["--api-key-file"])
    quiet()
    from fl_lightning.arguments import parse_config
    from fl_lightning.serving.server import ServingOptions, serve
    from fl_lightning.serving.spec import Limits

    hush()
    limits = Limits()
    options = ServingOptions(
        folder,
        host=texts["--host"] or ServingOptions.host,
        port=numbers["--port"] or ServingOptions.port,
        api_key=key,
        clients=not no_clients,
        models=models,
        max_batch=numbers["--max-batch"] or ServingOptions.max_batch,
        max_requests=numbers["--max-requests"] or ServingOptions.max_requests,
        max_body=(numbers["--max-body-kib"] or 1024) * 1024,
        limits=Limits(
            prompt_tokens=numbers["--max-prompt-tokens"] or limits.prompt_tokens,
            new_tokens=numbers["--max-new-tokens"] or limits.new_tokens,
            seconds=float(numbers["--timeout"] or limits.seconds),
        ),
        watch_seconds=float(numbers["--watch"] or ServingOptions.watch_seconds),
        certificate=_path(texts["--tls-certificate"]),
        key=_path(texts["--tls-key"]),
    )
    serve(parse_config(["--config", str(folder / CONFIG)]), options)
    return 0


def api_key(file: str | None) -> str:
    """The API key: of a file, or of the environment, from which it is taken away; empty where there is none.

    Raises:
        InputError: if the file cannot be read, others may read it, or the key is too short to be one.
    """
    key = os.environ.pop(KEY, "")
    source = KEY
    if file is not None:
        source = file
        try:
            mode = Path(file).stat().st_mode
            key = Path(file).read_text(encoding="utf-8").strip() if stat.S_ISREG(mode) else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file}: cannot be read; wanted a file with a key") from error
        if mode & 0o077:
            raise InputError(f"--api-key-file {file}: others may read it; wanted 'chmod 600 {file}'")
    elif not key:
        return ""
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{source}: got a key of {len(key)} characters, wanted at least 16 printable ones without spaces, such as "
            "'openssl rand -hex 24' gives"
        )
    return key


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
