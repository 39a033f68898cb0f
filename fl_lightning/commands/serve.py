"""``serve --run RUN``: the adapters of a run on one base model, behind OpenAI's chat API."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from fl_lightning import launch
from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_secret, read_text
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG

KEY = "FL_LIGHTNING_API_KEY"
DESCRIPTION = """Serve POST /v1/chat/completions, POST /v1/completions and GET /v1/models, with a model for every
department (hr), group and client (hr/client_0) of a run, and base; after personalize also with a client's mixture
(hr/client_0+) and the one adapter made of it (hr/client_0+adapter); and /health and /metrics. Adapters of a new round
are taken up as they land.

The API key that clients must show is in --api-key-file or in the environment variable FL_LIGHTNING_API_KEY; without
one the server is on the loopback address only."""


def run(argv: list[str]) -> int:
    """Serve until stopped."""
    args = _parser().read(argv)
    if missing := [name for name in ("litserve", "prometheus_client") if importlib.util.find_spec(name) is None]:
        raise InputError(f"serve needs {missing[0]}, which is not installed: pip install 'fl_lightning[serve]'")
    folder = find_run_folder(args.run, Path(args.output))
    key = api_key(args.api_key_file)
    setup_logging()
    from fl_lightning.config.parsing import parse_config

    with launch.importing():
        from fl_lightning.serving.app import ServingOptions, serve
        from fl_lightning.serving.endpoints import Limits

    silence_libraries()
    options = ServingOptions(
        folder,
        host=args.host,
        port=args.port,
        api_key=key,
        clients=args.clients,
        models=args.models,
        max_batch=args.max_batch,
        max_requests=args.max_requests,
        max_body=args.max_body_kib * 1024,
        limits=Limits(args.max_prompt_tokens, args.max_new_tokens, seconds=float(args.timeout)),
        watch_seconds=float(args.watch),
        certificate=args.tls_certificate,
        key=args.tls_key,
    )
    serve(parse_config(["--config", str(folder / CONFIG)]), options)
    return 0


def _parser() -> Parser:
    parser = Parser("serve", DESCRIPTION)

    def number(flag: str, value: int, text: str) -> None:
        parser.add_argument(flag, type=at_least(1), default=value, metavar="N", help=f"{text} ({value})")

    parser.takes_run()
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="serve these (all)")
    parser.add_argument("--no-clients", dest="clients", action="store_false", help="departments and groups only")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="127.0.0.1 (the default), 0.0.0.0 or ::")
    number("--port", 8000, "from 1024 on")
    parser.add_argument("--api-key-file", metavar="FILE", help="the key that clients must show")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="for HTTPS, with --tls-key")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="for HTTPS, with --tls-certificate")
    number("--max-batch", 32, "rows under way at once; an answer has one, of a mixture one for each of its adapters")
    number("--max-requests", 256, "requests under way or waiting at once; more get 429")
    number("--max-prompt-tokens", 2048, "of a prompt; more get 413")
    number("--max-new-tokens", 256, "of an answer")
    number("--max-body-kib", 1024, "of a request; more get 413")
    number("--timeout", 300, "seconds until an answer has to be there")
    number("--watch", 2, "seconds between two looks for a new round")
    return parser


def api_key(file: str | None) -> str:
    """The API key: of a file, or of the environment, from which it is taken away; empty where there is none.

    Raises:
        InputError: if the file cannot be read, others may read it, or the key is too short to be one.
    """
    key = os.environ.pop(KEY, "")
    source = KEY
    if file is not None:
        source = file
        option = f"--api-key-file {file}"
        key = read_text(Path(file), "a file with a key", name=option).strip()
        check_secret(Path(file), name=option)
    elif not key:
        return ""
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{source}: expected a key of at least 16 printable characters without spaces, got {len(key)} characters; "
            "'openssl rand -hex 24' makes one"
        )
    return key
