"""Serves a run behind OpenAI's chat API until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from litserve import LitServer

from fl_lightning.config import RunConfig
from fl_lightning.data.chat_template import pin_chat_template
from fl_lightning.errors import InputError, RunError
from fl_lightning.modeling.base_model import context_length, embedding_size, load_tokenizer
from fl_lightning.serving.endpoints import ChatSpec, Limits
from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.middleware import AccessMiddleware, digest
from fl_lightning.serving.model_registry import ModelRegistry
from fl_lightning.serving.worker import ChatAPI
from fl_lightning.signals import Stopped

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "0.0.0.0", "::")
"""Addresses on which LitServe can listen."""


@dataclass(frozen=True)
class ServingOptions:
    """Options of the server.

    Attributes:
        run_folder: the run.
        host: one of `HOSTS`.
        port: 1024 to 65535.
        api_key: required from clients; empty disables it, on the loopback address only.
        clients: also serve clients' adapters.
        models: names to serve; empty for all.
        max_batch: answers decoded at once.
        max_requests: requests running or waiting at once.
        max_body: limit of a request, bytes.
        limits: limits of a prompt and of an answer.
        watch_seconds: time between two checks for a new round.
        certificate: TLS certificate, PEM; None for plain HTTP.
        key: private key of the certificate, PEM.
    """

    run_folder: Path
    host: str = LOOPBACK
    port: int = 8000
    api_key: str = field(default="", repr=False)
    clients: bool = True
    models: Sequence[str] = ()
    max_batch: int = 32
    max_requests: int = 256
    max_body: int = 2**20
    limits: Limits = Limits()
    watch_seconds: float = 2.0
    certificate: Path | None = None
    key: Path | None = None

    def check(self) -> None:
        """Check the options before a model is loaded.

        Raises:
            InputError: an option is invalid, or the port is in use.
        """
        if self.host not in HOSTS:
            raise InputError(f"--host: expected one of {', '.join(HOSTS)}, got {self.host!r}")
        if not 1024 <= self.port <= 65535:
            raise InputError(f"--port: expected 1024 to 65535, got {self.port}")
        if self.host != LOOPBACK and not self.api_key:
            raise InputError(
                f"--host {self.host}: reachable from other machines; expected an API key in FL_LIGHTNING_API_KEY or "
                "--api-key-file"
            )
        if (self.certificate is None) != (self.key is None):
            raise InputError("--tls-certificate and --tls-key: expected both or neither, got one of them")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise InputError(f"{path}: no such file, expected a PEM file")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise InputError(
                    f"--port {self.port}: cannot listen there ({error.strerror}); choose another --port"
                ) from error


class _Server(LitServer):
    """LitServe's server; it also checks for new rounds, and its processes end when it is killed."""

    def _init_manager(self, num_api_servers: int) -> Any:
        manager = super()._init_manager(num_api_servers)
        self._starter_pid, self._queues_pid = os.getpid(), manager._process.pid
        return manager

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        async with super().lifespan(app):
            tasks = [asyncio.ensure_future(self.lit_api.spec.watch()), asyncio.ensure_future(self._end_with_parent())]
            print("ready", flush=True)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _end_with_parent(self) -> None:
        """End this process and that of the queues when their parent ends."""
        while os.getppid() == self._starter_pid:
            await asyncio.sleep(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._queues_pid, signal.SIGTERM)
        os._exit(1)


def serve(config: RunConfig, options: ServingOptions) -> None:
    """Serve until the process is stopped.

    Args:
        config: the config of the run.
        options: options of the server.

    Raises:
        InputError: nothing to serve, an option is invalid, or the base model or an adapter cannot be loaded.
        RunError: the worker process ended.
    """
    options.check()
    registry = ModelRegistry(options.run_folder, options.clients, options.models)
    folders = registry.refresh()
    tokenizer = load_tokenizer(config.model)
    pin_chat_template(tokenizer, config.data)
    limits = replace(
        options.limits,
        context=context_length(config.model),
        vocabulary=embedding_size(config.model),
        answers=options.max_requests,
    )
    metrics = ServingMetrics()
    spec = ChatSpec(tokenizer, registry, limits, metrics, options.watch_seconds)
    api = ChatAPI(config, folders, options.max_batch, spec)
    access = {
        "metrics": metrics,
        "key": digest(options.api_key.encode()) if options.api_key else None,
        "max_body": options.max_body,
        "max_requests": options.max_requests,
    }
    server = _Server(
        api, accelerator="cpu", timeout=False, disable_openapi_url=True, middlewares=[(AccessMiddleware, access)]
    )  # the device is the config's: LitServe's own choice would only name it
    url = f"{'https' if options.certificate else 'http'}://{options.host}:{options.port}/v1"
    print(f"serving {len(registry.created)} models of {options.run_folder}: {', '.join(registry.created)}", flush=True)
    print(f"{url}  (loading base model and adapters; Ctrl-C stops)", flush=True)
    tls = {"ssl_certfile": str(options.certificate), "ssl_keyfile": str(options.key)} if options.certificate else {}
    run = partial(
        server.run, host=options.host, port=options.port, num_api_servers=1, log_level="warning",
        generate_client_file=False, access_log=False, server_header=False, timeout_keep_alive=75, **tls,
    )  # fmt: skip
    try:
        _until_stopped(server, run)
    except RunError as error:
        if api.refusals.empty():
            raise
        raise InputError(api.refusals.get()) from error


def _until_stopped(server: LitServer, run: Callable[[], None]) -> None:
    """Run a server; a signal stops it in order.

    Raises:
        Stopped: a signal stopped it.
        RunError: it ended by itself.
    """
    received: list[int] = []
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if received or os.getpid() != owner:  # a second signal, or the HTTP process, which has finished
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt  # LitServe handles this one; after others it would wait for its queues for ever

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    reason = "the worker process ended"
    try:
        run()
    except KeyboardInterrupt:  # while the model is loaded
        pass
    except (RuntimeError, EOFError, OSError) as error:
        reason = "the model could not be loaded, see the line above" if isinstance(error, RuntimeError) else reason
    finally:
        for worker in getattr(server, "inference_workers", []):
            worker.kill()
            worker.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        stop = Stopped(received[0])
        stop.note = "it can be started again"
        raise stop
    raise RunError(reason)
