"""The worker process: takes prompts from LitServe's queue, answers them in one batch, sends tokens back."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType

from fl_lightning.config import RunConfig
from fl_lightning.console import setup_logging
from fl_lightning.errors import InputError
from fl_lightning.serving.messages import Cancel, GenerateRequest, Load, TokenChunk
from fl_lightning.storage.personal_models import ModelSource
from fl_lightning.storage.run_adapters import BASE

if TYPE_CHECKING:
    from fl_lightning.modeling.generation.adapter_mixture import ServedModel

log = logging.getLogger(__name__)


class ChatAPI(LitAPI):
    """The model and its adapters as a LitAPI.

    Args:
        config: the config of the run.
        sources: {model name: where its adapters are}.
        max_batch: answers decoded at once.
        spec: the HTTP endpoints.

    Attributes:
        refusals: why the worker process could not load the model, for the process that started it.
    """

    def __init__(self, config: RunConfig, sources: Mapping[str, ModelSource], max_batch: int, spec: LitSpec) -> None:
        super().__init__(max_batch_size=max_batch, stream=True, spec=spec, loop=ChatLoop())
        self._config, self._sources = config, dict(sources)
        self.refusals = multiprocessing.get_context("spawn").SimpleQueue()  # LitServe spawns its workers
        self.models: dict[str, ServedModel] = {}

    def setup(self, device: str) -> None:
        """Load the base model and all adapters onto the device of the run's config."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends this one
        setup_logging()  # before the imports below, some of which print
        from fl_lightning.serving.engine import BASE_MODEL, load_answering

        try:
            self.answering = load_answering(self._config)
            self.models[BASE] = BASE_MODEL
            self.load(self._sources, strict=True)
        except InputError as error:
            self.refusals.put(str(error))
            logging.getLogger("litserve").setLevel(logging.CRITICAL)  # it would print a traceback
            raise

    def load(self, sources: Mapping[str, ModelSource], *, strict: bool = False) -> None:
        """Load models. One with an unreadable adapter keeps its previous version, unless `strict`.

        Raises:
            InputError: `strict`, and an adapter cannot be read.
        """
        from fl_lightning.serving.engine import read_model

        read = functools.cache(self.answering.read)  # mixtures share adapters
        for name, source in sources.items():
            try:
                self.models[name] = read_model(source, read)
            except Exception as error:  # for example out of memory: the thread that receives requests must live
                if strict:
                    raise
                log.warning("model %s keeps its previous adapter: %s", name, error)

    def authorize(self) -> None:
        """Do nothing: `AccessMiddleware` has checked the key, and LitServe's header differs."""

    def predict(self, x: Any, **kwargs: Any) -> Iterator[Any]:
        """Not called: the loop decodes."""
        raise NotImplementedError


class ChatLoop(LitLoop):
    """Continuous batching over LitServe's queues."""

    def run(
        self,
        lit_api: ChatAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Answer until the parent process ends."""
        from fl_lightning.serving.scheduler import BatchScheduler

        inbox: queue.SimpleQueue[tuple[int, GenerateRequest | Cancel]] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(request_queue, inbox, lit_api), daemon=True)
        reader.start()

        def send(consumer: int, uid: str, chunk: TokenChunk) -> None:
            last = chunk.finish is not None or chunk.error is not None
            self.put_response(transport, consumer, uid, chunk, LitAPIStatus.OK, LoopResponseType.STREAMING)
            if last:
                self.put_response(
                    transport, consumer, uid, None, LitAPIStatus.FINISH_STREAMING, LoopResponseType.STREAMING
                )

        scheduler = BatchScheduler(lit_api.answering, lit_api.models, lit_api.max_batch_size, send)
        scheduler.work(inbox, lambda: os.getppid() == self._server_pid)
        os._exit(0)

    def _read(
        self, request_queue: Any, inbox: queue.SimpleQueue[tuple[int, GenerateRequest | Cancel]], lit_api: ChatAPI
    ) -> None:
        """Receive messages in order; adapters are loaded here, in parallel to the decoding."""
        while True:
            try:
                consumer, _, _, message = request_queue.get()
            except (EOFError, OSError):  # the process of the queues has ended
                os._exit(0)
            if isinstance(message, Load):
                lit_api.load(message.sources)
            else:
                inbox.put((consumer, message))
